"""Distillation methods, one package each; importing this package registers them all."""

from kd_search.distillation.methods import detector, dkd, global_knowledge, id_table, vkd
