"""The form that the loaders of all person search formats return."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import numpy as np

from kd_search.data.person_search.id_map import IDMap
from kd_search.data.records import Record

#: Galleries of a protocol by name, for the metadata key ``search_galleries``. Each is a dict of
#: - ``query_ids`` (Q,) int64: ids of the queries, as in ``queries`` of the dataset dicts;
#: - ``offsets`` (Q + 1,) int64: entries ``offsets[q]:offsets[q + 1]`` are the gallery of query q,
#:   in the order of the protocol's file;
#: - ``images`` (E,) int64: index of the image among the dataset dicts, repeats kept;
#: - ``boxes`` (E, 4) float64: XYXY box of the person there, in absolute pixels, as in the file; NaN
#:   where the entry has none.
Galleries = Mapping[str, dict[str, np.ndarray]]


@dataclass
class LoadedSplit:
    """A split in memory."""

    #: Detectron2 dataset dicts with ``person_id``, ``camera_id``, ``frame_id``, ``in_gallery`` and,
    #: on images that hold queries, ``queries``.
    dicts: list[Record]
    #: Rows of exactly the people of this split and its queries.
    id_map: IDMap
    #: Metadata besides ``person_ids``.
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Rules that the loader applied, with counts, and peculiarities of the files.
    notes: list[str] = field(default_factory=list)
    #: Registered name or file.
    name: str = ""
    #: Numbering of the original ids, see :class:`SplitSource`.
    id_space: Optional[str] = None
    #: Number of boxes whose identity is in a ``track_id`` that is not read.
    ids_of_tracks: int = 0

    @property
    def galleries(self) -> Galleries:
        """Galleries of the protocol; none where each query is searched in the whole set."""
        return self.metadata.get("search_galleries") or {}

    @property
    def queries(self) -> list[tuple[Record, Record]]:
        """Queries and the dicts of their images, in the order of the query ids."""
        pairs = [(query, record) for record in self.dicts for query in record.get("queries", ())]
        return sorted(pairs, key=lambda pair: pair[0]["query_id"])

    def image_name(self, record: Record) -> str:
        """Name of an image, relative to the image folder where that is known."""
        root = self.metadata.get("image_root")
        return os.path.relpath(record["file_name"], root) if root else record["file_name"]


class SplitSource(Protocol):
    """Files of one split in some format. Making one reads no file."""

    @property
    def id_space(self) -> Optional[str]:
        """Name of the numbering of the original ids; ids of splits with equal names can be
        compared."""

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split; ``metadata`` has the ``image_root``.

        Args:
            clip: apply the rules of the format to boxes that stick out of their image or have no
                area. ``False`` keeps every box as it is in the file, for checking them.

        Raises:
            FileNotFoundError: a file is missing; the line names it.
            ValueError: a file has another structure; the line names the file and the entry.
        """
