"""Detectron2's checkpointer with atomic writes and checks of what is read."""

import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kd_search.checkpoint.foreign import (
    is_torchvision_resnet,
    load_arrays_pickle,
    rename_torchvision_resnet,
)
from kd_search.checkpoint.plain import to_plain
from kd_search.checkpoint.schema import check_dtypes, check_model, check_parts
from kd_search.utils.comm import from_main_rank
from kd_search.utils.files import atomic_write, check_torch_archive

logger = logging.getLogger(__name__)

_BOTH_EMPTY = "MODEL.TORCHVISION.WEIGHTS and MODEL.WEIGHTS are empty"
_LAST = "last_checkpoint"
_PERIODIC = re.compile(r"model_\d+\.pth")
_HEURISTICS = "?matching_heuristics=True"


class PersonSearchCheckpointer(DetectionCheckpointer):
    """Saves and loads models in Detectron2's format, the same on Detectron2 0.5 and main.

    - A checkpoint holds ``model`` and the checkpointables (``optimizer``, ...), in plain types, and
      ``initial_weights``: file and SHA-256 of the weights that backbones started from. The
      method ``checkpoint_parts()`` of a model, such as a :class:`Distiller`, returns ``model`` (the
      student, so that the result loads into a plain config) and other modules by key.
    - Files are written atomically.
    - :meth:`resume_or_load` falls back from a missing or corrupt checkpoint to the previous one.
    - Files are checked before they are applied, see :mod:`kd_search.checkpoint.schema`.
    - ``.pth`` and ``.pyth`` files are read with ``weights_only``, ``.pkl`` files with arrays and
      plain containers only, unless ``trust_pickle``.
    - Weights with torchvision's ResNet names are renamed to Detectron2's.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: Optional[bool] = None,
        trust_pickle: bool = False,
        max_to_keep: Optional[int] = None,
        **checkpointables: Any,
    ):
        """
        Args:
            model: may be wrapped for DDP.
            save_dir: local folder of the checkpoints.
            save_to_disk: defaults to the main process only.
            trust_pickle: execute ``.pkl`` files (``MODEL.TRUST_PICKLE``).
            max_to_keep: number of newest ``model_<iteration>.pth`` to keep; ``None`` for all.
            checkpointables: other objects with ``state_dict`` and ``load_state_dict``.
        """
        network: Any = model.module if isinstance(model, DistributedDataParallel) else model
        if hasattr(network, "checkpoint_parts"):
            network, parts = network.checkpoint_parts()
            checkpointables.update(parts)
        super().__init__(network, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.trust_pickle = trust_pickle
        self.max_to_keep = max_to_keep
        #: File and SHA-256 of the weights that backbones started from, by name of their module.
        self.initial_weights: dict[str, dict[str, str]] = {
            name: weights for name, weights in self._backbone_weights() if "sha256" in weights
        }
        #: Iteration of the last checkpoint written by this process; ``None`` before the first.
        self.last_iteration: Optional[int] = None

    # ------------------------------------------------------------------------------------- saving

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` with the model, the checkpointables and ``kwargs``, on rank 0.

        It becomes the last checkpoint, unless it is named ``model_best...``: training resumes at
        the last iteration, not at the best.

        Raises:
            TypeError: an entry is neither a tensor nor of a plain type.
            OSError: of the file system; earlier checkpoints do not change.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        if self.initial_weights:
            data["initial_weights"] = self.initial_weights
        data.update(kwargs)
        data = to_plain(data)
        file = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", file)
        with atomic_write(file) as f:
            torch.save(data, f)
        if not name.startswith("model_best"):
            self.tag_last_checkpoint(os.path.basename(file))
            self._remove_old()
            self.last_iteration = kwargs.get("iteration")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of the folder the last checkpoint."""
        with atomic_write(os.path.join(self.save_dir, _LAST)) as f:
            f.write(last_filename_basename.encode())

    def _remove_old(self) -> None:
        if self.max_to_keep is None:
            return
        periodic = [f for f in self._by_age() if _PERIODIC.fullmatch(os.path.basename(f))]
        for file in periodic[max(self.max_to_keep, 1) :]:
            os.remove(file)

    def _by_age(self) -> list[str]:
        """All ``model_*.pth`` of the folder, newest first."""
        # By time: the folder may hold files of an older, longer training.
        files = [
            os.path.join(self.save_dir, name)
            for name in os.listdir(self.save_dir)
            if re.fullmatch(r"model_(?!best).*\.pth", name)
        ]
        return sorted(files, key=lambda f: (os.stat(f).st_mtime_ns, f), reverse=True)

    def _backbone_weights(self) -> Iterator[tuple[str, dict[str, str]]]:
        """``initial_weights`` of the modules that have it, such as ``LayerChain``."""
        for name, module in self.model.named_modules():
            if isinstance(getattr(module, "initial_weights", None), dict):
                yield name, module.initial_weights

    # ------------------------------------------------------------------------------------ loading

    def load(self, path: str, checkpointables: Optional[list[str]] = None) -> dict[str, Any]:
        """Load a file and return its other entries; missing and unexpected keys are logged.

        Args:
            path: a file, or a path of Detectron2 (``detectron2://...``, ``https://...``). The
                suffix ``?matching_heuristics=True`` matches names as for Caffe2 models. Empty:
                nothing is loaded, and backbones must have found their own weights.
            checkpointables: names of other objects to load; ``None`` for all.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is corrupt, refused, or no checkpoint.
        """
        if not path:
            logger.info("No weights given: the model keeps its initial weights")
            for name, weights in self._backbone_weights():
                if "missing" in weights:
                    raise FileNotFoundError(weights["missing"])
                if not weights:
                    logger.warning("%s starts from random weights: %s", name, _BOTH_EMPTY)
            return {}
        names = list(self.checkpointables) if checkpointables is None else checkpointables
        return self._apply(self._read(path, names), path, names)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last readable checkpoint of ``save_dir``; without one, load ``path``.

        A collective call: rank 0 reads the checkpoint and sends it to the others, which need not
        have the file: ``save_dir`` may be on a disk of each machine.

        Returns:
            the file's other entries, and ``resumed``, the path of the checkpoint or ``""``.

        Raises:
            FileNotFoundError, ValueError: as :meth:`load`; no checkpoint can be read, or it is of
                another model, or it is on the machine of another rank than 0.
        """
        have_one = comm.all_gather(resume and self.has_checkpoint())
        if not any(have_one):
            return {**self.load(path, checkpointables=[]), "resumed": ""}
        if not have_one[0]:
            raise ValueError(
                f"rank 0 has no checkpoint in {self.save_dir}, but rank {have_one.index(True)} has "
                "one: copy it to the machine of rank 0, or start rank 0 there. To start again, "
                "train without --resume"
            )
        newest = self._newest_readable() if comm.is_main_process() else None
        checkpoint, path, problem = from_main_rank(newest)
        if problem:
            raise ValueError(problem)
        self.initial_weights = checkpoint.get("initial_weights", self.initial_weights)
        return {**self._apply(checkpoint, path, self.checkpointables, strict=True), "resumed": path}

    def _newest_readable(self) -> tuple[Optional[dict[str, Any]], str, str]:
        """(checkpoint, its path, "") or (None, "", error)."""
        last = self.get_checkpoint_file()
        files = [last, *(f for f in self._by_age() if f != last)]
        problems = []
        for i, file in enumerate(files):
            try:
                return self._read_state(file), file, ""
            except (ValueError, OSError) as error:
                problems.append(str(error))
                if i + 1 < len(files):
                    logger.warning(
                        "Checkpoint %s cannot be used (%s). Falling back to %s",
                        *(file, error, files[i + 1]),
                    )
        problem = f"no checkpoint in {self.save_dir} can be resumed: {'; '.join(problems)}"
        return None, "", f"{problem}. To start again, train without --resume"

    def _read_state(self, path: str) -> dict[str, Any]:
        checkpoint = self._read(path, self.checkpointables, ["iteration", "initial_weights"])
        if "iteration" not in checkpoint:
            raise ValueError(f"{path} holds weights, but no training state")
        return checkpoint

    def _read(self, path: str, names: Iterable[str], more: Iterable[str] = ()) -> dict[str, Any]:
        """Read a file and check the model, checkpointables ``names`` and plain values ``more``."""
        by_heuristics = path.endswith(_HEURISTICS)
        file = path[: -len(_HEURISTICS)] if by_heuristics else path
        try:
            file = self.path_manager.get_local_path(file)
        except Exception as error:  # of the handler of this kind of path
            raise FileNotFoundError(f"weights {path} cannot be fetched: {error}") from error
        if not os.path.isfile(file):
            raise FileNotFoundError(f"weights {path} do not exist")
        checkpoint = self._load_file(file)
        if by_heuristics:
            checkpoint["matching_heuristics"] = True
        check_model(checkpoint, path)
        check_dtypes(checkpoint["model"], self.model.state_dict(), path)
        check_parts(
            checkpoint, {name: self.checkpointables.get(name) for name in names}, path, more
        )
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        try:
            check_torch_archive(filename)
            loaded = torch.load(filename, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            if asked is None:
                raise ValueError(f"{filename} is corrupt or no checkpoint") from error
            raise ValueError(
                f"{filename} is refused: it contains {asked[1]}, and only tensors and plain types "
                "are read from checkpoints"
            ) from None
        except Exception as error:  # a corrupt file can fail in any way
            raise ValueError(f"{filename} is corrupt or no checkpoint: {error}") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{filename} holds a {type(loaded).__name__} and no weights by name")
        if filename.endswith(".pyth"):
            # From pycls, as in Detectron2.
            state = loaded.get("model_state")
            if isinstance(state, dict):
                counters = [k for k in state if str(k).endswith("num_batches_tracked")]
                state = {k: v for k, v in state.items() if k not in counters}
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        if "model" not in loaded:
            loaded = {"model": loaded.get("state_dict", loaded)}
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        if self.trust_pickle:
            with open(filename, "rb") as f:
                data = pickle.load(f, encoding="latin1")
        else:
            data = load_arrays_pickle(filename)
        if not isinstance(data, dict):
            raise ValueError(f"{filename} holds a {type(data).__name__} and no weights by name")
        if "model" in data and "__author__" in data:
            return data
        # As in Detectron2: a file of Caffe2 or Detectron, whose detectors have "blobs".
        data = data.get("blobs", data)
        if isinstance(data, dict):
            data = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
        return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}

    def _apply(
        self, checkpoint: dict[str, Any], path: str, names: Iterable[str], strict: bool = False
    ) -> dict[str, Any]:
        if is_torchvision_resnet(checkpoint["model"]):
            renamed, left = rename_torchvision_resnet(checkpoint["model"], self.model.state_dict())
            checkpoint["model"] = renamed
            logger.info(
                "Renamed torchvision's ResNet weights of %s; not used: %s. They expect "
                "MODEL.RESNETS.STRIDE_IN_1X1 False, RGB input and torchvision's mean and std",
                *(path, ", ".join(left) or "none"),
            )
        before = {k: v.clone() for k, v in self.model.state_dict().items()} if strict else {}
        incompatible = self._load_model(checkpoint)
        if strict and any(incompatible):
            self.model.load_state_dict(before)
            raise ValueError(
                f"checkpoint {path} is of another model: {_differences(incompatible)}. To start "
                "again, train without --resume"
            )
        self._log_incompatible_keys(incompatible)
        for name in names:
            if name not in checkpoint:
                logger.warning("%s holds no %s: it starts from its initial state", path, name)
                continue
            try:
                self.checkpointables[name].load_state_dict(checkpoint.pop(name))
            except Exception as error:  # of any type
                reason = " ".join(str(error).split())
                raise ValueError(f"{name} of checkpoint {path} does not fit: {reason}") from error
        return checkpoint


class _CompleteCheckpointer(PersonSearchCheckpointer):
    #: Prefixes of names of weights that may be missing.
    optional: tuple[str, ...] = ()

    def load(self, path: str, checkpointables: Optional[list[str]] = None) -> dict[str, Any]:
        self._path = path
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        lacks = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        missing = sorted(key for key in lacks if not self._may_differ(key))
        # Those of a training are no news where a network is used.
        incompatible.unexpected_keys[:] = [
            key for key in incompatible.unexpected_keys if not self._may_differ(key)
        ]
        if missing:
            unused = ", and have for no part of it " + _first_of(
                sorted(incompatible.unexpected_keys)
            )
            raise ValueError(
                f"{self._path}: the weights are not of this config: they lack, or have in another "
                f"shape, {_first_of(missing)}{unused if incompatible.unexpected_keys else ''}"
            )
        return incompatible

    def _may_differ(self, key: str) -> bool:
        # Anchors are made from the config; only some versions of Detectron2 save them.
        return "cell_anchors" in key or ".id_table." in key or key.startswith(self.optional)


def load_trained(
    model: nn.Module,
    path: str,
    *,
    checkpointables: Optional[Sequence[str]] = (),
    trust_pickle: bool = False,
    for_inference: bool = False,
) -> None:
    """Load the weights of all parts of a network that is not trained further.

    ID tables may be missing or of another size: inference does not use them.

    Args:
        model: a network, or a ``Distiller``, whose student is loaded.
        path: the checkpoint.
        checkpointables, trust_pickle: see :class:`PersonSearchCheckpointer`; by default only the
            network is loaded.
        for_inference: weights of parts that only a training, or a student, uses may be missing or
            of another size too: the attributes that a module names in ``training_parts``, such as
            a classifier of the training identities.

    Raises:
        FileNotFoundError, ValueError: as :meth:`PersonSearchCheckpointer.load`, and for weights of
            another config, with the file and the missing weights.
    """
    checkpointer = _CompleteCheckpointer(model, trust_pickle=trust_pickle)
    if for_inference:
        checkpointer.optional = tuple(_training_parts(checkpointer.model))
    checkpointer.load(path, None if checkpointables is None else list(checkpointables))


def _training_parts(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        for part in getattr(module, "training_parts", ()):
            yield f"{name}.{part}." if name else f"{part}."


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _differences(incompatible: Any) -> str:
    shapes = [f"{k} is {there} there and {here} here" for k, there, here in incompatible[2]]
    parts = [
        ("missing there", incompatible.missing_keys),
        ("unknown here", incompatible.unexpected_keys),
        ("of another shape", shapes),
    ]
    return "; ".join(f"{what}: {_first_of(names)}" for what, names in parts if names)
