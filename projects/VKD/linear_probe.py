"""Linear probe of frozen features: multinomial logistic regression."""

import logging
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from kd_search.evaluation.flat_arrays import check_floats, check_integers

logger = logging.getLogger(__name__)

#: Weight lambda of the squared weights, see :func:`fit_linear_probe`.
REGULARISER = 1e-3
_MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of D features into C classes."""

    classes: np.ndarray  # (C,) int, ascending
    mean: np.ndarray  # (D,) of the training features
    scale: np.ndarray  # (D,) their standard deviations; 1 where a feature is constant
    weights: np.ndarray  # (D, C)
    bias: np.ndarray  # (C,)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N, D) features to the (N,) classes that they most probably are of.

        Raises:
            ValueError: features of another length, or not finite.
        """
        features = check_floats("features", features, (None, len(self.mean)))
        logits = ((features - self.mean) / self.scale) @ self.weights + self.bias
        return self.classes[logits.argmax(axis=1)]

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Share of the features whose class is found."""
        labels = check_integers("labels", labels, (len(features),))
        if not len(labels):
            raise ValueError("there are no features to classify")
        return float((self.predict(features) == labels).mean())


def fit_linear_probe(
    features: np.ndarray, labels: np.ndarray, *, regulariser: float = REGULARISER
) -> LinearProbe:
    """Fit the classifier with the least regularised cross-entropy.

    Features are standardised: z = (x - mean) / standard deviation, over the given ones. Then

        min_{W, b}  - 1/N sum_n log softmax(z_n W + b)_{y_n} + lambda / 2 |W|^2

    by L-BFGS in float64 from W = 0, b = 0. The problem is convex, in W strictly: nothing is drawn
    at random, and the result does not depend on the start. Biases are not regularised. Written as
    a sum over N samples as in scikit-learn, lambda is 1 / (C N).

    Args:
        features: (N, D).
        labels: (N,) int, at least two different ones.
        regulariser: lambda, above 0.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, one class only, or a
            regulariser that is not above 0.
    """
    features = check_floats("features", features, (None, None)).astype(np.float64)
    labels = check_integers("labels", labels, (len(features),))
    if not regulariser > 0:
        raise ValueError(f"the regulariser {regulariser} must be above 0")
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels of {len(classes)} classes: at least two are needed")
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # Rounding leaves a little deviation to equal numbers.
    varies = scale > 1e-12 * np.abs(features).max(axis=0, initial=0.0)
    scale = np.where(varies, scale, 1.0)
    inputs = np.where(varies, (features - mean) / scale, 0.0)
    shape = (inputs.shape[1] + 1, len(classes))
    result = minimize(
        _loss_and_gradient,
        np.zeros(shape).ravel(),
        args=(inputs, targets, regulariser, shape),
        jac=True,
        method="L-BFGS-B",
        # At the start the gradient is of the order 0.1.
        options={"maxiter": _MAX_ITERATIONS, "ftol": 1e-14, "gtol": 1e-7, "maxcor": 20},
    )
    if result.nit >= _MAX_ITERATIONS:
        logger.warning("the classifier had not converged after %d iterations", _MAX_ITERATIONS)
    parameters = result.x.reshape(shape)
    return LinearProbe(classes, mean, scale, parameters[:-1], parameters[-1])


def largest_share(labels: np.ndarray) -> float:
    """Share of the most frequent label: the accuracy of the best constant answer.

    Raises:
        ValueError: there are no labels.
    """
    labels = check_integers("labels", labels, (None,))
    if not len(labels):
        raise ValueError("there are no labels")
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _loss_and_gradient(
    flat: np.ndarray, inputs: np.ndarray, targets: np.ndarray, regulariser: float, shape: tuple
) -> tuple[float, np.ndarray]:
    parameters = flat.reshape(shape)
    weights, bias = parameters[:-1], parameters[-1]
    count = len(inputs)
    log_probabilities = log_softmax(inputs @ weights + bias, axis=1)
    rows = np.arange(count)
    loss = -log_probabilities[rows, targets].mean() + regulariser / 2 * (weights**2).sum()
    residual = np.exp(log_probabilities)
    residual[rows, targets] -= 1
    gradient = np.empty(shape)
    gradient[:-1] = inputs.T @ residual / count + regulariser * weights
    gradient[-1] = residual.sum(axis=0) / count
    return float(loss), gradient.ravel()
