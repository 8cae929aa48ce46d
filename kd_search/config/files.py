"""Config files and overrides, with errors of one line."""

import difflib
import re
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode

from kd_search.config.ranges import flatten
from kd_search.config.shipped import find_config_file


def merge_config_file(cfg: CfgNode, name: str, what: str = "config file") -> None:
    """Merge a config file with the files of its ``_BASE_`` into a config, in place.

    As ``cfg.merge_from_file``, with names of shipped configs (see
    :func:`~kd_search.config.shipped.find_config_file`) for the
    file and for its bases, and without running code of a file.

    Args:
        name: of the file.
        what: a word for the file or its key, for errors.

    Raises:
        FileNotFoundError: the file or a base does not exist.
        ValueError: it is not YAML, a key is unknown, or a value has the wrong type.
    """
    try:
        path = find_config_file(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {error}") from None
    try:
        loaded = CfgNode(_WithShippedBases.load_yaml_with_base(path))
        if loaded.get("VERSION", cfg.VERSION) != cfg.VERSION:
            raise ValueError(f"VERSION is {loaded.VERSION}: write its keys as of {cfg.VERSION}")
        cfg.merge_from_other_cfg(loaded)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"_BASE_ of {what} {name}: {error}") from error
    except RecursionError:
        raise ValueError(f"{what} {name}: its _BASE_ leads back to a file before it") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{what} {name} is not plain YAML: {_line(error)}") from error
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise ValueError(f"{what} {name}: {_explain(error, cfg)}") from error


def merge_overrides(cfg: CfgNode, opts: Sequence[str], what: str = "override") -> None:
    """Merge alternating keys and values into a config, in place.

    Raises:
        ValueError: a key has no value or is unknown, or a value has the wrong type.
    """
    opts = list(opts)
    if len(opts) % 2:
        raise ValueError(f"{what} must be pairs KEY VALUE, got {' '.join(map(str, opts))}")
    for key, value in zip(opts[::2], opts[1::2]):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
            reason = _line(error) if key in flatten(cfg) else _unknown_key(key, cfg)
            raise ValueError(f"{what} {key} {value}: {reason}") from error


def read_network_config(node: CfgNode, key: str) -> CfgNode:
    """The config of a further network.

    Args:
        node: with ``CONFIG_FILE``, and ``OPTS`` that are merged into it.
        key: of the node, for errors.

    Raises:
        FileNotFoundError, ValueError: see :func:`merge_config_file`, :func:`merge_overrides`.
    """
    from kd_search.config.registry import get_cfg

    cfg = get_cfg()
    merge_config_file(cfg, node.CONFIG_FILE, f"{key}.CONFIG_FILE")
    merge_overrides(cfg, node.OPTS, f"{key}.OPTS")
    return cfg


class _WithShippedBases(CfgNode):
    """Reads files only: a config of this class cannot be merged with those of Detectron2."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        return super().load_yaml_with_base(find_config_file(filename), allow_unsafe=False)


def _explain(error: Exception, cfg: CfgNode) -> str:
    found = re.search(r"Non-existent config key: ([\w.]+)", str(error))
    return _unknown_key(found[1], cfg) if found else _line(error)


def _unknown_key(key: str, cfg: CfgNode) -> str:
    close = difflib.get_close_matches(key.upper(), list(flatten(cfg)), n=1)
    hint = f", did you mean {close[0]}?" if close else "."
    return (
        f"there is no key {key}{hint} Keys of another package exist once it is imported (--import)"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
