"""The exported file: a TorchScript module with a description of itself inside."""

import hashlib
import io
import json
import os
from typing import Any, NamedTuple, Union

import torch
import torchvision  # noqa: F401  registers the operators (nms, roi_align) that the file calls
from torch import nn

from kd_search.export.tracing import quiet_torchscript

FORMAT = "kd_search.torchscript"
FORMAT_VERSION = 1
#: Name of the JSON text inside the file.
METADATA_NAME = "metadata.json"


class Exported(NamedTuple):
    """What an exported file holds."""

    #: Has the methods of :class:`kd_search.export.ExportablePersonSearch`.
    module: torch.jit.ScriptModule
    #: See :func:`kd_search.export.describe`.
    metadata: dict[str, Any]


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) of all parameters and buffers, the same before export and after."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encode(module: torch.jit.ScriptModule, metadata: dict[str, Any]) -> bytes:
    """The bytes of an exported file."""
    # To memory first: saved straight to a file, the archive carries that file's name.
    buffer = io.BytesIO()
    text = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **metadata}, indent=1)
    with quiet_torchscript():
        torch.jit.save(module, buffer, _extra_files={METADATA_NAME: text.encode()})
    return buffer.getvalue()


def load_exported(
    path: Union[str, os.PathLike], map_location: Union[str, torch.device] = "cpu"
) -> Exported:
    """Load an exported file and verify that its weights are those that were exported.

    TorchScript files hold code: load those of people you trust.

    Args:
        path: written by :func:`kd_search.export.export_torchscript`.
        map_location: device; of the type that the network was exported on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no exported person search network, or does not fit this device.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"exported model {path} does not exist: write it with tools/export_model.py"
        )
    with open(path, "rb") as f:
        return decode(f.read(), str(path), map_location)


def decode(content: bytes, name: str, map_location: Union[str, torch.device] = "cpu") -> Exported:
    """The reverse of :func:`encode`; ``name`` is used in errors. Raises as load_exported."""
    extra = {METADATA_NAME: ""}
    try:
        with quiet_torchscript():
            module = torch.jit.load(io.BytesIO(content), map_location, _extra_files=extra)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unknown reason"
        raise ValueError(
            f"exported model {name} is torn or not a TorchScript file: {reason}"
        ) from None
    metadata = _read_metadata(extra[METADATA_NAME], name)
    exported_on, wanted = torch.device(metadata["device"]).type, torch.device(map_location).type
    if exported_on != wanted:
        raise ValueError(
            f"exported model {name} was exported for {exported_on}, not {wanted}: tracing fixes "
            f"the device; export it again with MODEL.DEVICE {wanted}"
        )
    if weights_sha256(module) != metadata["weights_sha256"]:
        raise ValueError(
            f"exported model {name} is damaged: its weights do not match their SHA-256"
        )
    return Exported(module.eval(), metadata)


def _read_metadata(text: Union[str, bytes], name: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(
            f"{name} is a TorchScript file without the metadata of kd_search: export the model "
            "with tools/export_model.py"
        )
    if metadata.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"exported model {name} has format version {metadata.get('version')}, this kd_search "
            f"reads version {FORMAT_VERSION}"
        )
    return metadata
