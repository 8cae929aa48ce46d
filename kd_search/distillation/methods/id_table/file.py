"""Files of precomputed tables of teacher embeddings (Munjal et al., BMVC 2019)."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Optional, Union

import torch
from pydantic import AfterValidator, ConfigDict, model_validator

from kd_search.utils.files import atomic_write, check_torch_archive
from kd_search.utils.schema import Identifier, Schema, check_schema, shown

FORMAT = "kd_search.id_table"
FORMAT_VERSION = 1


class TableMismatchError(ValueError):
    """A table that does not fit the student."""


def _matrix(value: Any) -> Any:
    if not _is_plain(value, torch.float32, 2) or not value.isfinite().all():
        raise ValueError("is not a matrix of finite float32")
    return value


def _counts(value: Any) -> Any:
    if not _is_plain(value, torch.int64, 1) or (value < 0).any():
        raise ValueError("is not a vector of int64, 0 or more")
    return value


def _is_plain(value: Any, dtype: torch.dtype, dim: int) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and (value.dtype, value.dim()) == (dtype, dim)
    )


class _TableFile(Schema):
    model_config = ConfigDict(**{**Schema.model_config, "extra": "forbid"})

    rows: Annotated[Any, AfterValidator(_matrix)]
    counts: Annotated[Any, AfterValidator(_counts)]
    unlabelled: Annotated[Any, AfterValidator(_matrix)]
    person_ids: list[Identifier]
    source: Literal["mean", "oim"]
    dataset: str
    teacher_sha256: str
    teacher_config: str

    @model_validator(mode="after")
    def _agrees(self) -> "_TableFile":
        lengths = {len(self.rows), len(self.counts), len(self.person_ids)}
        if len(lengths) > 1 or self.rows.shape[1] != self.unlabelled.shape[1]:
            raise ValueError(
                f"rows {tuple(self.rows.shape)}, counts {len(self.counts)}, unlabelled "
                f"{tuple(self.unlabelled.shape)} and person_ids {len(self.person_ids)} do not agree"
            )
        return self


@dataclass
class IDTableFile:
    """A table of embeddings with its identities and origin."""

    #: (L, D) float32, unit length; zero for an identity without boxes.
    rows: torch.Tensor
    #: (L,) int64: number of boxes of each row; zeros for a copied table.
    counts: torch.Tensor
    #: (U, D) float32: embeddings of unlabelled boxes, for the initial queue.
    unlabelled: torch.Tensor
    #: L original identities, by row.
    person_ids: list[Any] = field(default_factory=list)
    #: "mean" of ground-truth boxes, or "oim", a copy of the teacher's own table.
    source: str = "mean"
    #: Name of the training set.
    dataset: str = ""
    #: SHA-256 of the teacher's weights file.
    teacher_sha256: str = ""
    #: Full config of the teacher, as YAML.
    teacher_config: str = ""

    @property
    def embedding_dim(self) -> int:
        return self.rows.shape[1]

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write the table atomically."""
        with atomic_write(path) as f:
            torch.save({"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}, f)

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> "IDTableFile":
        """Read a table.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is corrupt or no table of this format, or a field is wrong.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"ID table {path} does not exist: write it with kd-search table"
            )
        try:
            check_torch_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a corrupt file can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"ID table {path} is corrupt or not a table: {reason}") from error
        known = content.pop("format", None) if isinstance(content, dict) else None
        if not isinstance(known, str) or known != FORMAT:
            raise ValueError(f"{path} is not an ID table: write one with kd-search table")
        version = content.pop("version", None)
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(f"ID table {path} has version {shown(version)}, not {FORMAT_VERSION}")
        check_schema(content, _TableFile, f"ID table {path}")
        return cls(**content)

    def check_fits(
        self,
        path: str,
        *,
        embedding_dim: int,
        num_ids: Optional[int] = None,
        person_ids: Optional[Sequence[Any]] = None,
    ) -> None:
        """Raise :class:`TableMismatchError` if the table does not fit a student.

        Args:
            path: named in the error.
            embedding_dim: D of the student.
            num_ids: L of the student, if known.
            person_ids: original identities of the student's training set by row, if known.
        """
        if self.embedding_dim != embedding_dim:
            raise TableMismatchError(
                f"ID table {path} has embeddings of size {self.embedding_dim}, the student has "
                f"MODEL.REID_HEAD.EMBEDDING_DIM {embedding_dim}"
            )
        rows = self.rows.shape[0]
        if person_ids is not None:
            num_ids = len(person_ids)
        if num_ids is not None and rows != num_ids:
            raise TableMismatchError(
                f"ID table {path} has {rows} identities (of {self.dataset!r}), the student's "
                f"training set has {num_ids}"
            )
        if person_ids is not None and list(self.person_ids) != list(person_ids):
            row = next(i for i, (a, b) in enumerate(zip(self.person_ids, person_ids)) if a != b)
            raise TableMismatchError(
                f"ID table {path} orders identities differently: row {row} is person "
                f"{self.person_ids[row]!r} there and {person_ids[row]!r} in the training set"
            )
