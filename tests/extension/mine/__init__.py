"""A package that extends kd_search without changing it; importing it registers everything."""

from mine import data, method, networks

data.register()
