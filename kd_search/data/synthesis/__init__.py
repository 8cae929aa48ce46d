"""The embedded data set: street scenes with people that can be told apart, made from a seed."""

from kd_search.data.synthesis.config import PRESETS, GeneratorConfig, SceneConfig
from kd_search.data.synthesis.writer import generate_dataset, read_description

__all__ = ["PRESETS", "GeneratorConfig", "SceneConfig", "generate_dataset", "read_description"]
