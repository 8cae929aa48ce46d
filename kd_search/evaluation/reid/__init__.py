"""Evaluation of re-identification of crops and tracklets."""
