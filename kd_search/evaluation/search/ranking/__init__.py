"""Ranking of gallery detections by similarity to queries, behind :func:`rank_gallery`."""

from ._rank import RankingResult, RankingSettings, rank_gallery

__all__ = ["RankingResult", "RankingSettings", "rank_gallery"]
