"""Ranking of gallery detections by similarity to queries."""
