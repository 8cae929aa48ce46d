"""Files of exported networks: a TorchScript module with metadata.

The checksums of the zip archive do not cover names and headers, and torch does not check them. So
the archive ends with a comment, the *seal*: the SHA-256 of all bytes before it. Zip readers and
``torch.jit.load`` ignore comments. The metadata has the flag ``sealed``, so that a missing seal is
an error; files of older versions have neither.
"""

import hashlib
import io
import json
import os
import struct
from typing import Annotated, Any, Literal, NamedTuple, Union

import torch
import torchvision  # noqa: F401  registers the operators (nms, roi_align) that the file calls
from pydantic import Field
from torch import nn

from kd_search.export.tracing import quiet_torchscript
from kd_search.utils.files import check_torch_archive
from kd_search.utils.schema import Count, Schema, check_schema, shown

FORMAT = "kd_search.torchscript"
FORMAT_VERSION = 1
#: Name of the JSON text inside the file.
METADATA_NAME = "metadata.json"
_SEAL = b"kd_search sha256 "
_SEAL_LENGTH = len(_SEAL) + 64


class _Metadata(Schema):
    """Schema of the metadata of :func:`kd_search.export.describe`."""

    input_format: Literal["BGR", "RGB"]
    min_size: Count
    max_size: Count
    embedding_dim: Annotated[int, Field(ge=1, le=2**31)]
    score_threshold: float
    nms_threshold: float
    max_detections: int
    search_score_threshold: float
    device: str
    weights_sha256: str
    source_sha256: str
    versions: dict[str, str]
    config: str
    sealed: bool = False


class Exported(NamedTuple):
    """Content of an exported file."""

    #: With the methods of :class:`kd_search.export.ExportablePersonSearch`.
    module: torch.jit.ScriptModule
    #: See :func:`kd_search.export.describe`.
    metadata: dict[str, Any]


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 (hexadecimal) of all parameters and buffers; export does not change it."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encode(module: torch.jit.ScriptModule, metadata: dict[str, Any]) -> bytes:
    """Return the bytes of an exported file."""
    # Saved to memory, because an archive that is saved to a file contains that file's name.
    buffer = io.BytesIO()
    metadata = {"format": FORMAT, "version": FORMAT_VERSION, **metadata, "sealed": True}
    text = json.dumps(metadata, indent=1)
    with quiet_torchscript():
        torch.jit.save(module, buffer, _extra_files={METADATA_NAME: text.encode()})
    content = buffer.getvalue()
    # The last field of a zip archive is the length of its comment, 0 in torch's archives.
    content = content[:-2] + struct.pack("<H", _SEAL_LENGTH)
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def load_exported(
    path: Union[str, os.PathLike], map_location: Union[str, torch.device] = "cpu"
) -> Exported:
    """Load an exported file and verify its weights.

    TorchScript files contain code: load only files from sources that you trust.

    Args:
        path: written by :func:`kd_search.export.export_torchscript`.
        map_location: device, of the type that the network was exported on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an exported person search network, is damaged, or was exported on
            another type of device.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"exported model {path} does not exist: write it with kd-search export"
        )
    with open(path, "rb") as f:
        return decode(f.read(), str(path), map_location)


def decode(content: bytes, name: str, map_location: Union[str, torch.device] = "cpu") -> Exported:
    """Invert :func:`encode`. ``name`` is for error messages, which are those of load_exported."""
    archive, seal = content[:-_SEAL_LENGTH], content[-_SEAL_LENGTH:]
    sealed = seal.startswith(_SEAL)
    if sealed and seal != _SEAL + hashlib.sha256(archive).hexdigest().encode():
        raise ValueError(
            f"exported model {name} is damaged: its content does not match its SHA-256"
        )
    extra = {METADATA_NAME: ""}
    try:
        check_torch_archive(io.BytesIO(content))
        with quiet_torchscript():
            module = torch.jit.load(io.BytesIO(content), map_location, _extra_files=extra)
    except Exception as error:  # corrupt bytes may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unknown reason"
        raise ValueError(
            f"exported model {name} is truncated, corrupt or not a TorchScript file: {reason}"
        ) from None
    metadata = _read_metadata(extra[METADATA_NAME], name)
    if metadata.get("sealed") and not sealed:
        raise ValueError(f"exported model {name} is damaged: the SHA-256 at its end is missing")
    exported_on, wanted = metadata["device"], torch.device(map_location).type
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
            "with kd-search export"
        )
    version = metadata.get("version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"exported model {name} has format version {shown(version)}, this kd_search reads "
            f"version {FORMAT_VERSION}"
        )
    check_schema(metadata, _Metadata, f"metadata of exported model {name}")
    return metadata
