"""Loads weights of classification networks from a file or from torchvision's own cache."""

from __future__ import annotations

import logging
import os
import re
import textwrap
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from detectron2.config import CfgNode
from torch import nn

from kd_search.utils.files import check_torch_archive, file_sha256

logger = logging.getLogger(__name__)

_KEY = "MODEL.TORCHVISION.WEIGHTS"
# Names in the files of DenseNets, which modules cannot have any more: denselayer1.norm.1.weight.
_OLD_DENSE_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
# torchvision names its files after the first digits of their SHA-256.
_HASHED_NAME = re.compile(r".*-([0-9a-f]{8})\.pth")


class _Input(NamedTuple):
    """Mean and standard deviation of RGB channels in 0..255."""

    mean: list[float]
    std: list[float]


def load_weights(network: nn.Module, layers: Sequence[str], cfg: CfgNode) -> dict[str, str]:
    """Load ``MODEL.TORCHVISION.WEIGHTS`` into the layers of a network.

    They are the path of a state dict in the network's own names; or the name of an entry of
    torchvision's weights of this network, for the file in torchvision's cache
    (``$TORCH_HOME/hub/checkpoints``). Nothing is downloaded. The classifier is not loaded.

    Args:
        network: changed in place.
        layers: names of the layers, all of whose weights must be in the file.
        cfg: its ``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` must be those that
            the weights were trained with.

    Returns:
        ``file`` and ``sha256`` of what was loaded; empty if the key is; ``missing``, a message, if
        there is no such file. The checkpointer refuses to train with the latter, unless it loads
        the whole network, as searches and teachers do.

    Raises:
        ValueError: the file is corrupt, or of another network or input; ``network`` must not be
            used then.
    """
    name, source = cfg.MODEL.TORCHVISION.NAME, cfg.MODEL.TORCHVISION.WEIGHTS
    if not source:
        return {}
    known = _known_weights(name)
    _check_input(network, known, source, cfg)
    try:
        path = _locate(source, known)
    except FileNotFoundError as error:
        logger.warning("%s", error)
        return {"missing": str(error)}
    state = _read(path)
    sha256 = file_sha256(path)
    _load(network, {layer.split(".")[0] for layer in layers}, state, path)
    logger.info("Loaded the weights of %s from %s (SHA-256 %s)", name, path, sha256)
    return {"file": os.path.basename(path), "sha256": sha256}


def _known_weights(name: str) -> dict[str, Any]:
    """Torchvision's weights of a network by name; none of a network of timm."""
    models = torchvision.models
    if name not in models.list_models(module=models):
        return {}
    return dict(models.get_model_weights(name).__members__)


def _check_input(network: nn.Module, known: dict[str, Any], source: str, cfg: CfgNode) -> None:
    # With another channel order and scale they load without an error.
    wanted = _input_of(network, known.get(source) or next(iter(known.values()), None))
    given = (*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD)
    close = all(abs(a - b) <= 1 for a, b in zip(given, (*wanted.mean, *wanted.std)))
    if cfg.INPUT.FORMAT != "RGB" or not close:
        raise ValueError(
            f"{_KEY} {source} expects other images than the config gives: set INPUT.FORMAT RGB, "
            f"MODEL.PIXEL_MEAN {wanted.mean} and MODEL.PIXEL_STD {wanted.std}"
        )


def _input_of(network: nn.Module, weights: Any) -> _Input:
    """What torchvision or timm says of the images that the weights were trained with."""
    if weights is not None:
        preset = weights.transforms()
        mean, std = preset.mean, preset.std
    else:
        config: Any = getattr(network, "pretrained_cfg", {})
        mean, std = (
            config.get("mean", (0.485, 0.456, 0.406)),
            config.get("std", (0.229, 0.224, 0.225)),
        )
    return _Input([round(255 * x, 3) for x in mean], [round(255 * x, 3) for x in std])


def _locate(source: str, known: dict[str, Any]) -> str:
    otherwise = "set it to '' for a random start, or MODEL.WEIGHTS to weights of the whole network"
    if source not in known:
        path = os.path.expanduser(source)
        if not os.path.isfile(path):
            names = f"nor one of {', '.join(known)}" if known else "that exists"
            raise FileNotFoundError(
                f"{_KEY}: {source} is neither a file {names}: correct it, or {otherwise}"
            )
        return path
    url = known[source].url
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(url))
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{_KEY}: {source} is not in the cache: put {url} into {folder}, or {otherwise}"
        )
    return path


def _read(path: str) -> dict[str, Any]:
    try:
        _check_hash(path)
        check_torch_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("model", "state_dict"):
            if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
                state = state[wrapper]
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return {_new_name(str(name)): value for name, value in state.items()}
    except Exception as error:  # the type depends on where in the file the damage is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{_KEY}: {path} is corrupt or holds no weights ({reason})") from None


def _load(network: nn.Module, parts: Collection[str], state: dict[str, Any], path: str) -> None:
    """Load the children ``parts`` of a network, all of whose weights must be there."""
    inside = {name: value for name, value in state.items() if name.split(".")[0] in parts}
    problem = ""
    try:
        missing, unexpected = network.load_state_dict(inside, strict=False)
        missing = [name for name in missing if name.split(".")[0] in parts]
        # Counters of batches, which files from before torch 0.4 lack, do not count as missing.
        if missing or unexpected:
            problem = f"missing: {', '.join(missing)}; not expected: {', '.join(unexpected)}"
    except (RuntimeError, AttributeError, TypeError) as error:  # of shape; an entry is no tensor
        problem = " ".join(str(error).split())
    if problem:
        reason = textwrap.shorten(problem, 300)
        raise ValueError(f"{_KEY}: {path} is of another network ({reason})")


def _check_hash(path: str) -> None:
    named = _HASHED_NAME.fullmatch(os.path.basename(path))
    if named is None:
        return
    if not file_sha256(path).startswith(named[1]):
        raise ValueError("its SHA-256 is not the one that it is named after")


def _new_name(name: str) -> str:
    old = _OLD_DENSE_NAME.fullmatch(name)
    return name if old is None else old[1] + old[2]
