"""Weights for a network that is to be used, not trained further."""

from collections.abc import Sequence
from typing import Any, Optional

from torch import nn

from kd_search.checkpoint.checkpointer import PersonSearchCheckpointer


def load_trained(
    model: nn.Module,
    path: str,
    *,
    checkpointables: Optional[Sequence[str]] = (),
    trust_pickle: bool = False,
) -> None:
    """Load weights that leave no part of the network at its random start.

    ID tables may be missing or of another size: inference does not need them.

    Args:
        model: a network, or a ``Distiller``, whose student is loaded.
        path: the checkpoint.
        checkpointables, trust_pickle: see :class:`PersonSearchCheckpointer`; nothing but the
            network by default.

    Raises:
        FileNotFoundError, ValueError: as :meth:`PersonSearchCheckpointer.load`, and for weights of
            another config, naming the file and what it lacks.
    """
    checkpointer = _CompleteCheckpointer(model, trust_pickle=trust_pickle)
    checkpointer.load(path, None if checkpointables is None else list(checkpointables))


class _CompleteCheckpointer(PersonSearchCheckpointer):
    def load(self, path: str, checkpointables: Optional[list[str]] = None) -> dict[str, Any]:
        self._path = path
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]):
        incompatible = super()._load_model(checkpoint)
        missing = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        # Anchors are made from the config; only some versions of Detectron2 save them.
        missing = sorted(k for k in missing if "cell_anchors" not in k and ".id_table." not in k)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(
                f"{self._path}: the weights are not of this config: they lack, or have in another "
                f"shape, {', '.join(missing[:3])}{more}"
            )
        return incompatible
