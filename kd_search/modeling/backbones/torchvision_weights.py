"""Loads torchvision weights from a file or from torchvision's own cache."""

import logging
import os
import re
import textwrap

import torch
from torch import nn
from torchvision.models import WeightsEnum

from kd_search.utils.files import check_torch_archive, file_sha256

logger = logging.getLogger(__name__)

# Names in the files of DenseNets, which modules cannot have any more: denselayer1.norm.1.weight.
_OLD_DENSE_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
# torchvision names its files after the first digits of their SHA-256.
_HASHED_NAME = re.compile(r".*-([0-9a-f]{8})\.pth")


def load_torchvision_features(
    features: nn.Module, source: str, known: type[WeightsEnum], key: str
) -> None:
    """Load the convolutional part of a torchvision network.

    Args:
        features: ``model.features`` of the network.
        source: path of a state dict of the whole network, in torchvision's names; or the name of an
            entry of ``known``, for the file in torchvision's cache
            (``$TORCH_HOME/hub/checkpoints``). Nothing is downloaded.
        known: torchvision's weights of this network.
        key: config key of ``source``, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, or of another network; ``features`` must not be used then.
    """
    path = _locate(source, known, key)
    prefix = "features."
    state = {_new_name(name): value for name, value in _read(path, key).items()}
    state = {n[len(prefix) :]: value for n, value in state.items() if n.startswith(prefix)}
    try:
        features.load_state_dict(state)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"{key}: {path} is of another network ({reason})") from None
    logger.info("Loaded torchvision's weights from %s", path)


def _locate(source: str, known: type[WeightsEnum], key: str) -> str:
    otherwise = "set it to '' for a random start, or where MODEL.WEIGHTS holds the whole network"
    if source not in known.__members__:
        path = os.path.expanduser(source)
        if not os.path.isfile(path):
            names = ", ".join(known.__members__)
            raise FileNotFoundError(
                f"{key}: {source} is neither a file nor one of {names}: correct it, or {otherwise}"
            )
        return path
    url = known[source].url
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(url))
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{key}: {source} is not in the cache: put {url} into {folder}, or {otherwise}"
        )
    return path


def _read(path: str, key: str) -> dict[str, torch.Tensor]:
    try:
        _check_hash(path)
        check_torch_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # the type depends on where in the file the damage is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{key}: {path} is corrupt or holds no weights ({reason})") from None


def _check_hash(path: str) -> None:
    named = _HASHED_NAME.fullmatch(os.path.basename(path))
    if named is None:
        return
    if not file_sha256(path).startswith(named[1]):
        raise ValueError("its SHA-256 is not the one that it is named after")


def _new_name(name: str) -> str:
    old = _OLD_DENSE_NAME.fullmatch(name)
    return name if old is None else old[1] + old[2]
