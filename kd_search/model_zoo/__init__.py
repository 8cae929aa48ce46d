"""Configs that come with the package, in a checkout and in an installed wheel.

    from kd_search import model_zoo

    cfg = model_zoo.get_config("prw/r50_fpn.yaml")

The names are paths in ``configs/``; before those of a project stands its name, as in
``PersonSearchKD/generated/student_r18w50_fpn_id_table.yaml``. ``--config-file``, the config file of
a teacher and, with ``kd_search://`` before it, ``_BASE_`` take the same names. There are no trained
weights.
"""

from kd_search.model_zoo.model_zoo import get_config, get_config_file, get_config_names

__all__ = ["get_config", "get_config_file", "get_config_names"]
