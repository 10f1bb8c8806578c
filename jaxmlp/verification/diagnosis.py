"""Which mistake is it? A copy of the backward pass into which every known mistake can be planted.

A gradient that differs from the right one is compared with what each mistake would have produced.
The copy is NumPy float64, hand-batched, and begins from the pairs of a right forward pass.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmlp.network import Network


class Ingredients(NamedTuple):
    """What a backward pass over one batch needs; layer l's arrays stand at index l − 1.

    `weights` W_l; `inputs` A_{l−1} (N, n_{l−1}); `preactivations` Z_l (N, n_l); `slopes` f′(Z_l),
    for the output layer too, where a right pass does not use it; `prediction` (N, K), the softmax
    or its like; `output_delta` Δ_L (N, K) without sample weights; `sample_weight` (N,), ones where
    there is none.
    """

    network: Network
    weights: tuple[np.ndarray, ...]
    inputs: tuple[np.ndarray, ...]
    preactivations: tuple[np.ndarray, ...]
    slopes: tuple[np.ndarray, ...]
    prediction: np.ndarray
    output_delta: np.ndarray
    sample_weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A way to be wrong: its name, and where the copy of the backward pass departs.

    Several mistakes may share a name, where there are several ways to make it. `only` confines what
    happens on the way back through one layer to that layer; None means every layer.
    """

    name: str
    factor: float = 1.0
    normalise: Callable[[np.ndarray], float] = lambda w: float(w.sum())
    bias_normalise: Callable[[np.ndarray], float] | None = None
    sample_weight: Callable[[np.ndarray], np.ndarray] = lambda w: w
    transpose: bool = True
    weight_place: Callable[[int, int], int] = lambda l, n_layers: l
    layer_input: Callable[[Ingredients, int], np.ndarray] = lambda given, l: given.inputs[l]
    slope: Callable[[Ingredients, int], np.ndarray] = lambda given, l: given.slopes[l]
    output_delta: Callable[[Ingredients], np.ndarray] = lambda given: given.output_delta
    output_slope: bool = False
    turned: bool = False
    only: int | None = None


def _no_slope(given: Ingredients, number: int) -> np.ndarray:
    return np.ones_like(given.slopes[number])


def _with_every_target(given: Ingredients) -> np.ndarray:
    """Return Δ_L of one output where z − t, (N,) beside (N, 1), is (N, N) and its mean is taken.

    For the losses whose δ is the prediction less the target: that is less the targets' mean.
    """
    if given.network.sizes[-1] > 1 or given.network.loss == "softmax_cross_entropy":
        return given.output_delta
    return given.prediction - np.mean(given.prediction - given.output_delta)


def _half_at_zero(given: Ingredients, number: int) -> np.ndarray:
    """Return the derivative with ½ (f′(0−) + f′(0+)) at the kink, as jnp.maximum has it."""
    means = {"relu": 0.5, "leaky_relu": 0.505}
    mean = means.get(given.network.activations[number])
    slope = given.slopes[number]
    return slope if mean is None else np.where(given.preactivations[number] == 0, mean, slope)


def _slope_at(place: Callable[[int, int], int]) -> Callable[[Ingredients, int], np.ndarray]:
    return lambda given, number: given.slopes[place(number, len(given.slopes))]


def _input_at(
    offset: int, outputs: Callable[[Ingredients], np.ndarray]
) -> Callable[[Ingredients, int], np.ndarray]:
    """Return a_{l−1+offset}, from a list a_0 … a_L that ends with `outputs` and wraps around."""

    def layer_input(given: Ingredients, number: int) -> np.ndarray:
        values = (*given.inputs, outputs(given))
        return values[(number + offset) % len(values)]

    return layer_input


def _logits(given: Ingredients) -> np.ndarray:
    return given.preactivations[-1]


def _prediction(given: Ingredients) -> np.ndarray:
    return given.prediction


def _clamped(offset: int) -> Callable[[int, int], int]:
    return lambda number, n_layers: min(max(number + offset, 0), n_layers - 1)


def _around(offset: int) -> Callable[[int, int], int]:
    return lambda number, n_layers: (number + offset) % n_layers


def _count(w: np.ndarray) -> float:
    return float(len(w))


def _one(w: np.ndarray) -> float:
    return 1.0


_MISSING_WEIGHT = "missing sample weight"
_OFF_BY_ONE = "off-by-one layer"
_WRONG_SLOPE = "f' of the wrong layer"
_BIAS_SUM = "a sum for a mean in the bias"
_MISSING_MEAN = "missing 1/N (a sum for the mean)"

MISTAKES: tuple[Mistake, ...] = (
    Mistake("missing f'", slope=_no_slope),
    Mistake("relu'(0) = 1/2", slope=_half_at_zero),
    Mistake(_WRONG_SLOPE, slope=_slope_at(_around(1))),
    Mistake(_WRONG_SLOPE, slope=_slope_at(_around(-1))),
    Mistake(_WRONG_SLOPE, slope=_slope_at(_clamped(-1))),
    Mistake(_WRONG_SLOPE, slope=_slope_at(lambda l, n_layers: n_layers - 2)),
    Mistake(_WRONG_SLOPE, slope=_slope_at(lambda l, n_layers: (l - 1) % (n_layers - 1))),
    Mistake(_WRONG_SLOPE, slope=_slope_at(lambda l, n_layers: (l + 1) % (n_layers - 1))),
    Mistake("f' in the output layer, which is linear", output_slope=True),
    Mistake("W not transposed", transpose=False),
    Mistake("the gradient of W transposed", turned=True),
    Mistake(_OFF_BY_ONE, weight_place=_around(-1)),
    Mistake(_OFF_BY_ONE, weight_place=_around(1)),
    Mistake(_OFF_BY_ONE, weight_place=_clamped(1)),
    *(
        Mistake(_OFF_BY_ONE, layer_input=_input_at(offset, outputs))
        for offset in (1, -1)
        for outputs in (_logits, _prediction, lambda given: given.inputs[0])
    ),
    Mistake(_OFF_BY_ONE, layer_input=lambda given, l: given.inputs[max(l - 1, 0)]),
    Mistake(_OFF_BY_ONE, layer_input=lambda given, l: given.inputs[l - 1]),
    Mistake(_BIAS_SUM, bias_normalise=_one),
    Mistake(_MISSING_WEIGHT, sample_weight=np.ones_like, normalise=_count),
    Mistake(_MISSING_WEIGHT, sample_weight=np.ones_like),
    Mistake(_MISSING_WEIGHT, normalise=_count),
    Mistake(_MISSING_MEAN, normalise=_one),
    Mistake(_MISSING_MEAN, sample_weight=np.ones_like, normalise=_one),
    Mistake("every output with every target, (N,) beside (N, 1)", output_delta=_with_every_target),
    Mistake("a sign", factor=-1.0),
)
"""The known mistakes, from the particular to the general; a constant factor is found by itself."""

RIGHT = Mistake("right")
_ON_THE_WAY_BACK = ("missing f'", "relu'(0) = 1/2", _WRONG_SLOPE, "W not transposed", _OFF_BY_ONE)


def _variants(n_layers: int) -> list[Mistake]:
    """Return every mistake, made in all layers or, where it can be, in a single one."""
    variants = list(MISTAKES)
    for mistake in MISTAKES:
        on_the_way_back = mistake.layer_input is RIGHT.layer_input
        if n_layers > 2 and mistake.name in _ON_THE_WAY_BACK and on_the_way_back:
            variants += [dataclasses.replace(mistake, only=l) for l in range(n_layers - 1)]
    return variants


def backward_copy(given: Ingredients, mistake: Mistake = RIGHT) -> list[np.ndarray]:
    """Return the gradient of the mean loss, as leaves in the tree's order, with a mistake planted.

    Raises:
        ValueError: The mistake leads to a product of shapes that do not fit.
    """
    n_layers = len(given.weights)
    sample_weight = mistake.sample_weight(given.sample_weight)
    delta = mistake.output_delta(given) * sample_weight[:, None]
    if mistake.output_slope:
        delta = delta * given.slopes[-1]
    deltas = [delta]
    for number in reversed(range(n_layers - 1)):
        here = mistake if mistake.only in (None, number) else RIGHT
        weight = given.weights[here.weight_place(number + 1, n_layers)]
        above = deltas[0] @ (weight if here.transpose else weight.T)
        deltas.insert(0, _fitting_product(above, here.slope(given, number)))
    leaves = []
    total = mistake.normalise(given.sample_weight)
    bias_total = (mistake.bias_normalise or mistake.normalise)(given.sample_weight)
    for number, delta in enumerate(deltas):
        a = mistake.layer_input(given, number)
        gradient = mistake.factor * (delta.T @ a) / total
        leaves.append(gradient.T if mistake.turned else gradient)
        if given.network.bias:
            leaves.append(mistake.factor * delta.sum(axis=0) / bias_total)
    return leaves


def diagnose(
    given: Ingredients, got: list[np.ndarray], names: list[str], tolerance: float
) -> list[str]:
    """Return the names of the mistakes that explain a wrong gradient of one batch, likeliest first.

    A mistake explains the gradient when it would have produced all of it, then also when it would
    have up to a constant factor; failing that, each wrong leaf is explained by itself.

    Args:
        given: The right forward pass.
        got: The leaves to explain, of the right shapes.
        names: Their names.
        tolerance: The largest relative difference that counts as equal.

    Returns:
        Names; empty where nothing known explains the gradient.
    """
    right = backward_copy(given)
    candidates: dict[str, list[list[np.ndarray]]] = {}
    for mistake in _variants(len(given.weights)):
        try:
            leaves = backward_copy(given, mistake)
        except ValueError:
            continue
        if any(leaf.shape != one.shape for leaf, one in zip(leaves, right, strict=True)):
            continue
        if _all_equal(leaves, right, tolerance):
            continue  # it changes nothing here, and so explains nothing
        candidates.setdefault(_title(mistake), []).append(leaves)

    whole = [
        name
        for name, produced in candidates.items()
        if any(_all_equal(got, leaves, tolerance) for leaves in produced)
    ]
    if whole:
        return whole
    if factor := _common_factor(got, right, tolerance):
        return [_factor_name(factor, given)]
    scaled = []
    for name, produced in candidates.items():
        for leaves in produced:
            if factor := _common_factor(got, leaves, tolerance):
                scaled.append(f"{name}, and {_factor_name(factor, given)}")
    return list(dict.fromkeys(scaled)) or _leaf_by_leaf(
        given, got, right, candidates, names, tolerance
    )


def _leaf_by_leaf(
    given: Ingredients,
    got: list[np.ndarray],
    right: list[np.ndarray],
    candidates: dict[str, list[list[np.ndarray]]],
    names: list[str],
    tolerance: float,
) -> list[str]:
    """Return "name (in leaf, leaf)" for what explains single leaves; empty if one stays open."""
    explained: dict[str, list[str]] = {}
    for place, leaf in enumerate(names):
        if _all_equal([got[place]], [right[place]], tolerance):
            continue
        reasons = [
            name
            for name, produced in candidates.items()
            if any(_all_equal([got[place]], [leaves[place]], tolerance) for leaves in produced)
        ]
        if not reasons and (factor := _common_factor([got[place]], [right[place]], tolerance)):
            reasons = [_factor_name(factor, given)]
        if not reasons:
            return []
        for reason in reasons:
            explained.setdefault(reason, []).append(leaf)
    return [f"{reason} (in {', '.join(leaves)})" for reason, leaves in explained.items()]


def shape_mistakes(given: Ingredients) -> list[str]:
    """Return the names of the mistakes that lead to shapes that do not fit in this network."""
    right = backward_copy(given)
    found = []
    for mistake in MISTAKES:
        try:
            leaves = backward_copy(given, mistake)
        except ValueError:
            found.append(mistake.name)
            continue
        if any(leaf.shape != one.shape for leaf, one in zip(leaves, right, strict=True)):
            found.append(mistake.name)
    return list(dict.fromkeys(found))


def _title(mistake: Mistake) -> str:
    return mistake.name if mistake.only is None else f"{mistake.name} (layer {mistake.only + 1})"


def _factor_name(factor: float, given: Ingredients) -> str:
    """Return a constant factor in words, with what it may come from."""
    n_outputs = given.output_delta.shape[1]
    known = [(-1.0, "a sign"), (1 / given.sample_weight.sum(), "1/N twice")]
    if n_outputs > 1:
        known.append((1 / n_outputs, "a mean over the outputs for a sum"))
    if given.network.loss == "squared_error":
        known.append((2.0, "a factor 2, where the squared error is ½ Σ (z − t)²"))
        if n_outputs > 1:
            known.append((2 / n_outputs, "a mean over the outputs, where it is ½ Σ (z − t)²"))
    fitting = [name for value, name in known if abs(factor - value) < 1e-6 * abs(value)]
    return " or ".join(fitting) or f"a factor {factor:.6g}"


def _all_equal(got: list[np.ndarray], leaves: list[np.ndarray], tolerance: float) -> bool:
    """Tell whether all leaves agree, each within the tolerance times its own largest entry."""
    return all(
        np.max(np.abs(one - other)) <= tolerance * max(np.max(np.abs(other)), 1e-300)
        for one, other in zip(got, leaves, strict=True)
    )


def _common_factor(
    got: list[np.ndarray], leaves: list[np.ndarray], tolerance: float
) -> float | None:
    """Return c ≠ 0 where got = c · leaves within the tolerance, else None."""
    mine = np.concatenate([leaf.ravel() for leaf in got])
    theirs = np.concatenate([leaf.ravel() for leaf in leaves])
    square = float(theirs @ theirs)
    factor = float(mine @ theirs) / square if square > 0 else 0.0
    if factor == 0 or not np.isfinite(factor):
        return None
    return factor if _all_equal(got, [factor * leaf for leaf in leaves], tolerance) else None


def _fitting_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.shape != right.shape:
        raise ValueError(f"shapes {left.shape} and {right.shape} do not fit")
    return left * right
