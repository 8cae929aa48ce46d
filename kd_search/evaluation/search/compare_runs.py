"""Results of finished evaluations, read from files and compared."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Optional, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, create_model, field_validator, model_validator

from kd_search.evaluation.flat_arrays import AnyPath
from kd_search.evaluation.query_results import PairedComparison, compare_paired
from kd_search.evaluation.search.evaluate import RESULTS_FILE
from kd_search.evaluation.search.protocol import Protocol
from kd_search.utils.files import read_json
from kd_search.utils.schema import CornerBox, Count, Identifier, Percent, Schema, check_schema

#: Folder of the evaluations of a training, each in a folder of the name of its test set.
INFERENCE_FOLDER = "inference"
# Two APs are comparable only if these are equal.
_SAME = ("dataset", "protocol")
_SAME_OF_QUERY = ("image_id", "person_id", "bbox", "num_gt")


class _Match(Schema):
    image_id: Identifier
    bbox: CornerBox
    score: float
    similarity: float
    correct: bool


class _Query(Schema):
    query_id: int
    image_id: Optional[Identifier] = None
    person_id: Optional[int] = None
    bbox: Optional[CornerBox] = None
    AP: Optional[Percent]
    first_hit_rank: Optional[Annotated[Count, Field(ge=1)]]
    num_gt: Count
    num_found: Count
    matches: list[_Match]

    @model_validator(mode="after")
    def _agrees(self) -> "_Query":
        if (self.AP is None) != (self.num_gt == 0):
            raise ValueError(f"has AP {self.AP} and num_gt {self.num_gt}, which do not agree")
        if (self.first_hit_rank is None) != (self.num_found == 0) or self.num_found > self.num_gt:
            raise ValueError(
                f"has first_hit_rank {self.first_hit_rank}, num_found {self.num_found} and num_gt "
                f"{self.num_gt}, which do not agree"
            )
        return self


_HINTS = get_type_hints(Protocol)
# mypy cannot check the computed fields.
_PROTOCOL = create_model(  # type: ignore[call-overload]
    "_PROTOCOL",
    # A setting of a later version may change every number.
    __config__=ConfigDict(**{**Schema.model_config, "extra": "forbid"}),
    **{field.name: (_HINTS[field.name], field.default) for field in fields(Protocol)},
)


class _Results(Schema):
    """What :func:`.evaluate.results_document` makes, in this and earlier versions."""

    dataset: Optional[str] = None
    protocol: Optional[_PROTOCOL] = None  # type: ignore[valid-type]  # made at run time
    metrics: dict[str, dict[str, Optional[float]]] = {}
    intervals: dict[str, Annotated[list[Percent], Field(min_length=2, max_length=2)]] = {}
    queries: list[_Query]

    @field_validator("protocol")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        if value is not None:
            Protocol(**value.model_dump())
        return value

    @field_validator("queries")
    @classmethod
    def _each_once(cls, queries: list[_Query]) -> list[_Query]:
        seen = set()
        for query in queries:
            if query.query_id in seen:
                raise ValueError(f"have query_id {query.query_id} twice")
            seen.add(query.query_id)
        return queries


def load_results(path: AnyPath, dataset: Optional[str] = None) -> dict[str, Any]:
    """Read the ``person_search_results.json`` of one evaluation.

    Args:
        path, dataset: see :func:`results_file`.

    Returns:
        ``dataset``, ``protocol``, ``metrics`` and ``queries``, the per-query results of
        :func:`.evaluate.rank_lists`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is another file, was changed, or a field is wrong; the message names it. Or
            the path is of several evaluations.
    """
    path = results_file(path, dataset)
    document: dict[str, Any] = read_json(path, "file; run the evaluation first", sealed=True)
    check_schema(document, _Results, path)
    return document


def results_file(path: AnyPath, dataset: Optional[str] = None) -> str:
    """File of the results of one evaluation.

    Args:
        path: the file; its folder; or, of a training that was evaluated on one set, its output
            folder RUN or RUN/inference.
        dataset: chooses among the sets of a training that was evaluated on several.

    Raises:
        FileNotFoundError: there are no results.
        ValueError: there are results of several sets, which the message lists.
    """
    path = os.fspath(path)
    if not os.path.isdir(path):
        return path
    if os.path.isfile(os.path.join(path, RESULTS_FILE)):
        return os.path.join(path, RESULTS_FILE)
    is_parent = os.path.basename(os.path.abspath(path)) == INFERENCE_FOLDER
    parent = path if is_parent else os.path.join(path, INFERENCE_FOLDER)
    # A folder above those of the sets may have any name.
    parent = parent if os.path.isdir(parent) else path
    found = {
        name: os.path.join(parent, name, RESULTS_FILE)
        for name in sorted(os.listdir(parent))
        if os.path.isfile(os.path.join(parent, name, RESULTS_FILE))
    }
    if len(found) > 1 and dataset is not None:
        found = {name: file for name, file in found.items() if name == dataset}
    if not found:
        of_set = f" of {dataset}" if dataset else ""
        raise FileNotFoundError(
            f"{path}: no {RESULTS_FILE}{of_set}; run the evaluation first: kd-search evaluate"
        )
    if len(found) > 1:
        each = ", ".join(os.path.dirname(file) for file in found.values())
        raise ValueError(f"{path} was evaluated on several sets, name one of: {each}")
    return next(iter(found.values()))


def compare_runs(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    resamples: int = 10000,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> PairedComparison:
    """Compare the APs (percent) of two runs, query by query.

    Args:
        a, b: of :func:`load_results` or :func:`.evaluate.results_document`.
        names: of the runs, for messages.

    Raises:
        ValueError: data, protocols or queries of the runs differ, or no query has a match in the
            gallery; the message names the difference.
    """
    for key in _SAME:
        if a.get(key) != b.get(key):
            raise ValueError(
                f"{key} differs: {names[0]} has {_difference(a, b, key)}; only runs of the same "
                "test set and protocol can be compared"
            )
    rows_a, rows_b = ({row["query_id"]: row for row in run["queries"]} for run in (a, b))
    if rows_a.keys() != rows_b.keys():
        only = sorted(rows_a.keys() ^ rows_b.keys(), key=str)
        raise ValueError(
            f"{len(only)} queries are in one of the runs only (the first is {only[0]!r})"
        )
    for query, row in rows_a.items():
        for key in _SAME_OF_QUERY:
            if row.get(key) != rows_b[query].get(key):
                raise ValueError(
                    f"query {query!r}: {key} differs ({row.get(key)!r} and "
                    f"{rows_b[query].get(key)!r}); are the annotations the same?"
                )
    counted = [query for query, row in rows_a.items() if row["AP"] is not None]
    if not counted:
        raise ValueError("no query has a match in the gallery: there is nothing to compare")
    values = [np.array([rows[query]["AP"] for query in counted]) for rows in (rows_a, rows_b)]
    return compare_paired(*values, resamples=resamples, seed=seed)


def verdict(result: PairedComparison, names: tuple[str, str] = ("A", "B")) -> str:
    """Describe in one sentence whether the difference could be chance."""
    difference, p = result.difference, result.p_value
    numbers = (
        f"{difference.mean:+.2f} mAP (95 % interval {difference.low:+.2f} to "
        f"{difference.high:+.2f}, p = {p:.4f}, {result.num_queries} queries)"
    )
    if not result.num_different:
        return f"{names[0]} and {names[1]} have the same AP on all {result.num_queries} queries."
    if p >= 0.05:
        return (
            f"The difference of {names[1]} and {names[0]}, {numbers}, could be chance: with the "
            f"runs swapped at random per query, one as large comes up {100 * p:.1f} % of the time."
        )
    better, worse = (names[1], names[0]) if difference.mean > 0 else (names[0], names[1])
    return (
        f"{better} is better than {worse}: {names[1]} minus {names[0]} is {numbers}. It is hardly "
        f"chance of the choice of queries: one as large would come up {100 * p:.2f} % of the time. "
        "This does not cover the variation between training runs."
    )


def _difference(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> str:
    one, other = a.get(key), b.get(key)
    prefix = ""
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(n for n in {**one, **other} if one.get(n) != other.get(n))
        prefix, one, other = f"{name} ", one.get(name), other.get(name)
    return f"{prefix}{one!r}, the other {other!r}"
