"""Average precision of a ranked list."""

import numpy as np


def average_precision(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """Average precision without interpolation.

    AP = sum over thresholds n, from high to low, of (R_n - R_{n-1}) P_n. The thresholds are the
    distinct scores, so that equal scores enter together and their order does not matter. This is
    the definition of scikit-learn's ``average_precision_score``.

    Args:
        is_positive: (N,) bool, whether each entry of the list is right.
        scores: (N,), higher is earlier in the list.

    Returns:
        AP in 0..1; 0 where nothing is positive.
    """
    is_positive = np.asarray(is_positive, dtype=bool)
    scores = np.asarray(scores)
    if not is_positive.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_threshold = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true_positives = np.cumsum(is_positive[order])[last_of_threshold]
    precision = true_positives / (last_of_threshold + 1)
    new_positives = np.diff(true_positives, prepend=0)
    return float((new_positives * precision).sum() / true_positives[-1])
