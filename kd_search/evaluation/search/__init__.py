"""Person search: protocols, tables, files and Detectron2's evaluator."""
