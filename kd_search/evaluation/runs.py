"""Finished evaluations, read back and compared."""

import json
import os
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from .confidence import PairedComparison, compare_paired
from .detections_file import RESULTS_FILE

# What must be equal for two APs to mean the same.
_SAME = ("dataset", "protocol")
_SAME_OF_QUERY = ("image_id", "person_id", "bbox", "num_gt")


def load_results(path: Union[str, os.PathLike]) -> dict[str, Any]:
    """Read ``person_search_results.json``, from its path or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file; one line that names it.
    """
    if os.path.isdir(path):
        path = os.path.join(path, RESULTS_FILE)
    try:
        with open(path, encoding="utf-8") as stream:
            document = json.load(stream)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; run the evaluation first") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    rows = document.get("queries") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"query_id", "AP", "num_gt"} <= set(row) for row in rows
    ):
        raise ValueError(f"{path}: not the results of a person-search evaluation")
    return document


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
        a, b: of :func:`load_results`, or what :func:`results_document` makes.
        names: of the runs, for messages.

    Raises:
        ValueError: the runs are of different data, protocol or queries, or no query of them has a
            match in the gallery; one line that says what differs.
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
    """A sentence that says whether the difference could be chance."""
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
        "Whether another training run would show it, this does not say."
    )


def _difference(a: Mapping, b: Mapping, key: str) -> str:
    one, other = a.get(key), b.get(key)
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(n for n in {**one, **other} if one.get(n) != other.get(n))
        return f"{name} {one.get(name)!r}, the other {other.get(name)!r}"
    return f"{one!r}, the other {other!r}"
