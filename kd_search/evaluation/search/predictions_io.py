"""The file of detections and embeddings, so that evaluation can run again without the model.

A ``.npz`` archive (zip of ``.npy`` arrays, no pickles) with these entries, G images, N detections,
Q queries, embeddings of length D:

==================  ===========  ==================================================================
entry               shape        meaning
==================  ===========  ==================================================================
image_ids           (G,)         int64, or unicode text where the data set's ids are text
offsets             (G + 1,)     int64; detections offsets[i]:offsets[i + 1] belong to image i
boxes               (N, 4)       float32; absolute pixels of the original image, XYXY
scores              (N,)         float32
embeddings          (N, D)       float32 (float16 is read too); unit length
query_ids           (Q,)         int64
query_embeddings    (Q, D)       as embeddings
gt_offsets          (G + 1,)     optional, version 2: as offsets, for the annotated boxes where they
                                 were embedded in the same pass
gt_boxes            (M, 4)       with gt_offsets: as boxes
gt_embeddings       (M, D)       with gt_offsets: as embeddings
metadata            (B,)         uint8: UTF-8 JSON object with "format", "version" and what the
                                 writer adds ("dataset", "use_gt_boxes")
==================  ===========  ==================================================================

A file without ``gt_*`` says version 1, which older readers know.
"""

import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Optional, Union

import numpy as np

from kd_search.evaluation.search.predictions import (
    GT_ARRAYS,
    DetectionSet,
)
from kd_search.evaluation.search.protocol import (
    Evaluation,
    Protocol,
    evaluate_detection_set,
    results_document,
)
from kd_search.evaluation.search.protocol_table import TableOptions
from kd_search.utils.files import (
    atomic_write,
    write_json,
)
from kd_search.utils.schema import (
    Schema,
    check_schema,
)

#: Names of the files that an evaluation leaves in its output folder.
RESULTS_FILE = "person_search_results.json"
DETECTIONS_FILE = "person_search_detections.npz"

FORMAT = "kd_search.detections"
VERSIONS = (1, 2)
_ARRAYS = (
    "image_ids",
    "offsets",
    "boxes",
    "scores",
    "embeddings",
    "query_ids",
    "query_embeddings",
)


class _Metadata(Schema):
    dataset: Optional[str] = None
    use_gt_boxes: Optional[bool] = None


def save_detections(path: Union[str, os.PathLike], detections: DetectionSet, **metadata) -> None:
    """Write a detection set; the file is there whole or not at all.

    Args:
        path: of the file; its folder must exist.
        metadata: JSON values to keep beside the arrays, such as ``dataset``.
    """
    ids = detections.image_ids
    arrays = {name: getattr(detections, name) for name in _ARRAYS}
    arrays["image_ids"] = np.array(ids) if ids else np.zeros(0, np.int64)
    if detections.has_gt_boxes:
        arrays.update({name: getattr(detections, name) for name in GT_ARRAYS})
    kinds = {type(image_id) for image_id in ids}
    # An integer beyond 64 bits would become a Python object, which would be pickled.
    if not (kinds <= {int} or kinds <= {str}) or arrays["image_ids"].dtype.kind not in "iU":
        raise ValueError(f"{path}: image ids must be all 64-bit int or all str")
    version = VERSIONS[1] if detections.has_gt_boxes else VERSIONS[0]
    text = json.dumps({"format": FORMAT, "version": version, **metadata})
    arrays["metadata"] = np.frombuffer(text.encode(), dtype=np.uint8)
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_detections(path: Union[str, os.PathLike]) -> tuple[DetectionSet, dict]:
    """Read a file of :func:`save_detections`. Nothing in it is executed.

    Returns:
        The detection set and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is torn, of another format, or an entry is missing or does not fit. One
            line that names the file and the entry.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of detections")
    arrays = _read_arrays(path)
    metadata = _parse_metadata(path, arrays.pop("metadata"))
    image_ids = arrays["image_ids"]
    if image_ids.ndim != 1 or image_ids.dtype.kind not in "iU":
        raise ValueError(f"{path}: image_ids must be a vector of integers or of text")
    arrays["image_ids"] = image_ids.tolist()
    try:
        return DetectionSet(**arrays), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def evaluate_detections_file(
    path: Union[str, os.PathLike],
    dataset_dicts: list[dict],
    *,
    search_galleries: Optional[Mapping[str, Mapping]] = None,
    output_dir: Union[str, os.PathLike, None] = None,
    table: Optional[TableOptions] = None,
    **protocol,
) -> "OrderedDict[str, dict[str, float]]":
    """Evaluate saved detections as :class:`PersonSearchEvaluator` does.

    Args:
        path: file of :func:`save_detections`.
        dataset_dicts: annotations of the same test set.
        search_galleries: the lists of its protocol, from the metadata of the set.
        output_dir: where to write the per-query results, and the table if there is one; None
            writes nothing.
        table: which protocols to put into a table.
        protocol: fields of :class:`Protocol` (``score_thresh``, ``top_k``, ...); ``use_gt_boxes``
            is taken from the file.

    Returns:
        The results of :func:`evaluate_detection_set`.
    """
    detections, metadata = load_detections(path)
    protocol = Protocol(**{"use_gt_boxes": bool(metadata.get("use_gt_boxes")), **protocol})
    try:
        evaluation = evaluate_detection_set(
            detections, dataset_dicts, protocol, search_galleries=search_galleries, table=table
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if output_dir is not None:
        write_evaluation(output_dir, metadata.get("dataset"), evaluation)
    return evaluation.results


def write_evaluation(
    output_dir: Union[str, os.PathLike], dataset_name: Optional[str], evaluation: Evaluation
) -> None:
    """Write the per-query results and, where there is one, the table of protocols."""
    document = results_document(dataset_name, evaluation)
    write_json(os.path.join(output_dir, RESULTS_FILE), document, sealed=True)
    if evaluation.table is not None:
        evaluation.table.write(output_dir, dataset_name)


def _read_arrays(path) -> dict[str, np.ndarray]:
    entry = "the archive"
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz archive, or torn")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in (*_ARRAYS, "metadata") if name not in archive.files]
            if missing:
                entry = missing[0]
                raise ValueError("missing")
            arrays = {}
            optional = [name for name in GT_ARRAYS if name in archive.files]
            for entry in (*_ARRAYS, *optional, "metadata"):
                arrays[entry] = archive[entry]
            return arrays
    # A torn or hostile file makes the readers of zip and npy raise errors of a dozen kinds.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: {entry} cannot be read ({reason})") from None


def _parse_metadata(path, array: np.ndarray) -> dict:
    try:
        metadata = json.loads(array.astype(np.uint8, casting="safe").tobytes().decode())
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: metadata is not JSON text as uint8") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: metadata does not say format {FORMAT!r}; it is another file")
    if metadata.get("version") not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise ValueError(
            f"{path}: version {metadata.get('version')!r} of the format; this reads {known}"
        )
    check_schema(metadata, _Metadata, f"{path}: metadata")
    return metadata
