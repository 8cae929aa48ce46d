"""Utilities for several ranks: the DDP wrap, folder locks, and shared ID tables."""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kd_search.modeling.id_table import IDTable
from kd_search.utils.comm import fail_together, unwrap_model
from kd_search.utils.folder_lock import hold_folder, release_folder


def wrap_model(model: nn.Module) -> nn.Module:
    """Wrap a model for data-parallel training with several ranks, on GPU or CPU.

    Detectron2's ``create_ddp_model`` requires a GPU. Buffers are not broadcast: all ranks make the
    same updates of ID tables, and batch-norm statistics are per rank, as in Detectron2.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # Newer torch replaces one argument by the other.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    keep = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {keep: False}
    device_ids = None if device.type == "cpu" else [device.index]
    return DistributedDataParallel(model, device_ids=device_ids, **options)


def hold_together(folders: Sequence[str]) -> list[str]:
    """Reserve folders for a run, on rank 0; a collective call.

    Returns:
        on rank 0, messages about folders that were taken over.

    Raises:
        FolderInUseError, OSError: as :func:`hold_folder`; on the other ranks as
            :func:`fail_together`. No folder is held.
    """

    def work() -> list[str]:
        if not comm.is_main_process():
            return []
        with contextlib.ExitStack() as stack:
            messages = []
            for folder in folders:
                messages.append(hold_folder(folder))
                stack.callback(release_folder, folder)
            stack.pop_all()
        return [message for message in messages if message]

    return fail_together(work)


def id_tables(model: nn.Module) -> dict[str, IDTable]:
    """ID tables of a model by name, in the same order on all ranks."""
    return {n: m for n, m in unwrap_model(model).named_modules() if isinstance(m, IDTable)}
