"""What a similarity says about two pictures, by the calibration of the network."""

from collections.abc import Mapping
from typing import Any, Optional

#: Rates of false matches: at the first a match is possible, at one of the others it is likely.
_POSSIBLE, _LIKELY = 1e-2, (1e-4, 1e-3)


def verdict(calibration: Optional[Mapping[str, Any]], similarity: float) -> str:
    """``"likely"``, ``"unsure"`` or ``"unlikely"`` the same person, or ``"not calibrated"``.

    Likely is a similarity that at most one in 10,000 comparisons of different people reaches (in
    1,000, where the pictures of the calibration did not suffice for more), unlikely one below what
    one in 100 of them reaches. These are rates of a comparison: a search compares with everybody in
    its gallery, and has that many chances of a false match.

    Args:
        calibration: of the manifest: ``points``, each with ``false_match_rate`` and ``threshold``.
        similarity: cosine of two embeddings.
    """
    points = calibration["points"] if calibration else ()
    thresholds = {p["false_match_rate"]: p["threshold"] for p in points}
    possible = thresholds.get(_POSSIBLE)
    likely = next((t for r in _LIKELY if (t := thresholds.get(r)) is not None), None)
    if possible is None:
        return "not calibrated"
    if likely is not None and similarity >= likely:
        return "likely"
    return "unsure" if similarity >= possible else "unlikely"
