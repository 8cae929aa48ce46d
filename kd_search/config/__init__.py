"""Config keys of the core, and the registry for those of methods and other packages."""

from kd_search.config.registry import add_kd_search_config, get_cfg, import_modules, register_config

__all__ = ["add_kd_search_config", "get_cfg", "import_modules", "register_config"]
