"""What the loader of every format gives: the form that the rest of the library works with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import numpy as np

from kd_search.data.person_search.id_map import IDMap

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
    dicts: list[dict[str, Any]]
    #: Rows of exactly the people of this split and its queries.
    id_map: IDMap
    #: What goes into the metadata besides ``person_ids``.
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Counted rules that the loader applied: what was left out, and what is odd about the files.
    notes: list[str] = field(default_factory=list)

    @property
    def galleries(self) -> Optional[Galleries]:
        """Galleries of the protocol; ``None`` where each query is searched in the whole set."""
        return self.metadata.get("search_galleries")


class SplitSource(Protocol):
    """Files of one split in some format. Making one touches no file."""

    #: Folder that image names are shown relative to.
    image_root: str
    #: Name of the numbering that the original ids belong to; ids of two splits can be compared
    #: where it is equal.
    id_space: Optional[str]

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split.

        Args:
            clip: apply the format's rules to boxes that stick out of their image or have no area.
                ``False`` keeps every box as it is in the file, for checking them.

        Raises:
            FileNotFoundError: a file is missing; the line names it.
            ValueError: a file has another structure; the line names the file and the entry.
        """
