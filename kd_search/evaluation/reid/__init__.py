"""Re-ID: metric, protocol, files and Detectron2's evaluator."""
