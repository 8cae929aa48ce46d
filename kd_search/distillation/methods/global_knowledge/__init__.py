"""Global knowledge (Tang et al., ECCV 2022)."""
