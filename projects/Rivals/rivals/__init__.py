"""Published methods of others, as a package outside of kd_search: DDPS, PKD and CrossKD."""

from rivals import cross_head, ddps, pkd  # noqa: F401  registers keys, terms and companions
