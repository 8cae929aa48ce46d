"""Config keys of the core, and the registry for those of methods and other packages."""

from kd_search.config.registry import (
    ConfigError,
    add_kd_search_config,
    get_cfg,
    import_modules,
    register_config,
)

__all__ = ["ConfigError", "add_kd_search_config", "get_cfg", "import_modules", "register_config"]
