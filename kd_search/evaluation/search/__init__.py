"""Evaluation of person search: protocols, galleries, detections files."""
