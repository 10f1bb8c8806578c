"""How much each class counts, and each example."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxmlp.data.contents import listed
from jaxmlp.validation import check_classes, check_finite


def class_weights(
    targets: np.ndarray,
    classes: int | Sequence[str],
    how: Literal["balanced"] | Mapping[str, float],
) -> np.ndarray:
    """Return the weight of each of K classes.

    Args:
        targets: (N,) integers: the classes of the training examples.
        classes: The classes' names, as in `Dataset.classes`, or their number K where they are named
            "0" to "K − 1".
        how: "balanced" for N / (K · n_k) with n_k examples of class k, as scikit-learn defines it:
            every class then counts as much as any other. Or the weight of some classes by their
            names; the others weigh 1.

    Returns:
        (K,) float64.

    Raises:
        ValueError: A target or a name is none of the classes, a weight is negative or not finite,
            `how` is another word, or a class without examples is to be balanced.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), ("cat", "dog"), "balanced")
        array([0.667, 2.   ])
        >>> class_weights(np.array([0, 0, 0, 1]), ("cat", "dog"), {"dog": 5.0})
        array([1., 5.])
    """
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    check_classes("targets", targets, len(names))
    if isinstance(how, Mapping):
        weights = np.ones(len(names))
        for name, weight in how.items():
            if name not in names:
                raise ValueError(
                    f"class_weight: unknown class {name!r}: expected one of {listed(names)}"
                )
            if not 0 <= weight < np.inf:
                raise ValueError(
                    f"class_weight: expected finite numbers ≥ 0, got {weight} for {name!r}"
                )
            weights[names.index(name)] = weight
        return weights
    if how != "balanced":
        raise ValueError(f"class_weight: expected 'balanced' or a weight by name, got {how!r}")
    counts = np.bincount(targets, minlength=len(names))
    if not counts.all():
        raise ValueError(
            "class_weight: expected examples of every class to balance them, got none of "
            f"{names[int(np.argmin(counts))]!r}"
        )
    return len(targets) / (len(names) * counts)


def example_weights(
    targets: np.ndarray, weights_of_classes: np.ndarray, sample_weight: np.ndarray | None = None
) -> np.ndarray:
    """Return each example's weight: its class's, times its own.

    Args:
        targets: (N,) integers, classes in 0 … K − 1.
        weights_of_classes: (K,), as from `class_weights`.
        sample_weight: (N,), not negative, or None.

    Returns:
        (N,) float32.

    Raises:
        ValueError: A target is no class, the shapes do not fit, a product is too large for float32,
            or no example of weight above 0 is left.

    Example:
        >>> example_weights(np.array([0, 1, 1]), np.array([1.0, 5.0]), np.array([1.0, 1.0, 2.0]))
        array([ 1.,  5., 10.], dtype=float32)
    """
    check_classes("targets", targets, len(weights_of_classes))
    weights = np.asarray(weights_of_classes, np.float64)[targets]
    if sample_weight is not None:
        if np.shape(sample_weight) != np.shape(targets):
            raise ValueError(
                f"sample_weight: expected shape {np.shape(targets)}, got {np.shape(sample_weight)}"
            )
        weights = weights * sample_weight
    with np.errstate(over="ignore"):
        result = weights.astype(np.float32)
    check_finite("the weights of classes times sample_weight", result)
    if not result.any():
        raise ValueError(
            "class_weight: expected an example that weighs more than 0, got none (a class counts "
            "as its weight times sample_weight)"
        )
    return result
