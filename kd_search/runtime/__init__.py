"""Search with exported networks, without torch and Detectron2."""
