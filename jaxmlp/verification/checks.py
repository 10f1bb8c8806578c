"""The check of a gradient, ours or the user's own, on random networks."""

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmlp.batch import check_batch
from jaxmlp.network import Network, Parameters
from jaxmlp.validation import as_host_array, check_classes, check_finite, check_key
from jaxmlp.verification.cases import N_EXAMPLES, Draws
from jaxmlp.verification.comparison import (
    NO_DIFFERENCE,
    Difference,
    GradientReport,
    compare,
    leaf_names,
)
from jaxmlp.verification.diagnosis import Ingredients, diagnose, shape_mistakes
from jaxmlp.verification.evidence import Evidence, gather, make_draws, uncancelled
from jaxmlp.verification.trials import FLOAT64

FLOAT64_BOUND = 1e-13
# A user's formula may be right and still cancel, as 1 − tanh² does; a wrong one is far off.
USER_FLOAT64_BOUND = 1e-10
USER_FLOAT32_BOUND = 1e-4
_SQUARE = 4

GradientFunction = Callable[[Any, Any, Any], Any]


def check_gradients(
    gradient_fn: GradientFunction | None = None,
    *,
    network: Network,
    params: Parameters | None = None,
    inputs: ArrayLike | None = None,
    targets: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    trials: int = 20,
    key: Array,
) -> GradientReport:
    """Check a gradient of the mean loss against `jax.grad` of a plain loss, in float64.

    What is not given is drawn anew in every trial: weights N(0, 1/fan_in), biases 0.1·N(0, 1),
    inputs N(0, 1), for relu and its like also units whose preactivation is exactly 0. A gradient
    that differs is compared with what each known mistake would have produced, and the mistakes
    that explain it are named. A function whose shapes do not fit is tried on a network of equal
    widths as well, where most mistakes do yield a gradient and so have a name.

    Args:
        gradient_fn: The function to judge, `gradient_fn(params, inputs, targets)`, in JAX or NumPy;
            None judges `jaxmlp.loss_and_gradient`. It gets NumPy float64 arrays, with JAX in 64-bit
            mode: the parameters as a tuple of (weight (n_out, n_in), bias (n_out,) or None),
            inputs (N, D), targets (N,) or (N, K). It returns the gradient of
            Σ w_n E_n / Σ w_n as a tree or list of arrays, layer by layer, weight before bias.
        network: The network.
        params: Its parameters, or None.
        inputs: (N, D), or None.
        targets: As for `jaxmlp.loss`, and so handed to the function; or None, for classes (N,) with
            softmax cross-entropy and numbers (N, K) else, also where K = 1.
        sample_weight: (N,), or None for no weights; a function of the user's knows its weights.
        trials: How many draws; 1 where all is given.
        key: A typed key for the draws.

    Returns:
        A `GradientReport`: true when the gradient is right; `print` it; `faults` names mistakes.

    Raises:
        TypeError: The key is no typed key, or targets of another kind.
        ValueError: Shapes that do not fit, values that are not finite, classes out of range, no
            examples, or no trials.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmlp
        >>> network = jaxmlp.Network((4, 3), loss="squared_error", bias=False)
        >>> def mine(params, inputs, targets):
        ...     (weight, _), = params
        ...     return [(inputs @ weight.T - targets).T @ inputs]
        >>> report = jaxmlp.check_gradients(mine, network=network, key=jax.random.key(0))
        >>> report.passed, report.faults
        (False, ('missing 1/N (a sum for the mean)',))
    """
    check_key(key)
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a jaxmlp.Network, got {type(network).__name__}")
    if gradient_fn is not None and not callable(gradient_fn):
        raise TypeError(f"gradient_fn: expected a function or None, got {gradient_fn!r:.60}")
    if isinstance(trials, bool) or not isinstance(trials, (int, np.integer)) or trials < 1:
        raise ValueError(f"trials: expected an integer of at least 1, got {trials!r}")
    given = _given(network, params, inputs, targets, sample_weight)
    if params is not None and inputs is not None and targets is not None:
        trials = 1
    sizes = [v.shape[0] for v in given[1:] if v is not None and v.ndim > 0]
    n_examples = sizes[0] if sizes else N_EXAMPLES
    if n_examples == 0:
        raise ValueError("inputs, targets, sample_weight: expected at least one example, got none")
    _check_given(network, given, n_examples)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    draws = make_draws(network, trials, rng, n_examples=n_examples, given=given)
    evidence = gather(network, draws, FLOAT64)
    judge = Judge(network, draws, evidence)
    outcome = judge.ours() if gradient_fn is None else judge.users(gradient_fn)
    wrong = bool(outcome.failures or outcome.findings)
    if wrong and gradient_fn is not None and _right_for_flat_targets(judge, gradient_fn):
        outcome = outcome._replace(faults=(FLAT_TARGETS,))
    elif outcome.broken and gradient_fn is not None:
        square = _with_equal_widths(gradient_fn, network, draws, rng)
        guesses = judge.shape_mistakes() if square.failures else ()
        outcome = outcome._replace(faults=square.faults or guesses)
    name = "jaxmlp.loss_and_gradient" if gradient_fn is None else _name_of(gradient_fn)
    return GradientReport(
        passed=not outcome.failures and not outcome.findings,
        network=network,
        trials=trials,
        bound=outcome.bound,
        worst=outcome.worst,
        failures=tuple(outcome.failures),
        findings=tuple(outcome.findings),
        faults=tuple(outcome.faults),
        reproduce=f"{name}, trial {outcome.trial} of {trials}, key data "
        f"{np.asarray(jax.random.key_data(key)).tolist()}",
    )


def _given(
    network: Network,
    params: Parameters | None,
    inputs: ArrayLike | None,
    targets: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> Draws:
    """Return what the caller fixed, as float64 and integers on the host."""

    def float64(name: str, value: Any) -> Any:
        return None if value is None else as_host_array(name, value).astype(np.float64)

    tree: Any = ()
    if params is not None:
        tree = jax.tree.map(lambda leaf: float64("params", leaf), params)
    rows: Any = None if targets is None else as_host_array("targets", targets)
    if rows is not None and not (
        np.issubdtype(rows.dtype, np.integer) and network.loss == "softmax_cross_entropy"
    ):
        rows = rows.astype(np.float64)
    drawn: Any = float64("inputs", inputs), rows, float64("sample_weight", sample_weight)
    return Draws(tree, *drawn)


def _check_given(network: Network, given: Draws, n_examples: int) -> None:
    """Raise where what the caller gave does not fit the network, or not together."""
    rng = np.random.default_rng(0)
    drawn = make_draws(network, 1, rng, n_examples=n_examples).trial(0)
    with jax.enable_x64(True):
        check_batch(
            network,
            given.params or drawn.params,
            drawn.inputs if given.inputs is None else given.inputs,
            drawn.targets if given.targets is None else given.targets,
            given.weights,
        )
    for name, value in zip(leaf_names(network), jax.tree.leaves(given.params), strict=False):
        check_finite(name, value)
    for name in ("inputs", "targets", "weights"):
        if (value := getattr(given, name)) is not None:
            check_finite("sample_weight" if name == "weights" else name, value)
    if given.weights is not None and not given.weights.sum() > 0:
        raise ValueError(f"sample_weight: expected a sum above 0, got {given.weights.sum()}")
    if given.targets is not None and given.targets.dtype.kind in "iu" and given.targets.ndim == 1:
        check_classes("targets", given.targets, network.sizes[-1])


class _Outcome(NamedTuple):
    """What the judge found; `broken` tells that shapes did not fit or the function raised."""

    bound: float
    worst: Difference
    trial: int
    failures: Sequence[Difference] = ()
    findings: Sequence[str] = ()
    faults: Sequence[str] = ()
    broken: bool = False


class Judge:
    """Compares gradients of the same draws with the oracle's."""

    def __init__(
        self, network: Network, draws: Draws, evidence: Evidence, scales: Any = None
    ) -> None:
        self.network = network
        self.draws = draws
        self.evidence = evidence
        self.names = leaf_names(network)
        if scales is None:
            scales = uncancelled(network, evidence, draws, slope=1.0)
        self.scales = scales
        self.right = jax.tree.leaves(evidence.oracle[1])

    def ours(self) -> _Outcome:
        """Judge our own gradient."""
        leaves = jax.tree.leaves(self.evidence.ours[1])
        trials = len(self.draws.inputs)
        return self._judge(lambda t: [leaf[t] for leaf in leaves], range(trials), FLOAT64_BOUND)

    def users(self, gradient_fn: GradientFunction) -> _Outcome:
        """Judge a user's function."""
        trials = range(len(self.draws.inputs))
        results: list[list[np.ndarray]] = []
        for trial in trials:
            try:
                leaves = flat_gradient(_call(gradient_fn, self.draws.trial(trial)))
            except Exception as error:  # whatever the user's function raises is a finding
                draw = self.draws.trial(trial)
                finding = (
                    f"{_name_of(gradient_fn)} raised {type(error).__name__}: "
                    f"{str(error).strip()}{_place_of(error, gradient_fn)}, given inputs "
                    f"{draw.inputs.shape} and targets {draw.targets.shape}"
                )
                return _Outcome(np.inf, NO_DIFFERENCE, trial, findings=[finding], broken=True)
            findings = self._shape_findings(leaves)
            if findings:
                return _Outcome(np.inf, NO_DIFFERENCE, trial, findings=findings, broken=True)
            results.append(leaves)
        narrow = any(leaf.dtype != FLOAT64 for leaves in results for leaf in leaves)
        bound = USER_FLOAT32_BOUND if narrow else USER_FLOAT64_BOUND
        return self._judge(results.__getitem__, trials, bound)

    def shape_mistakes(self) -> list[str]:
        """Return the mistakes that cannot but fail on this network's shapes."""
        return [f"perhaps {name}" for name in shape_mistakes(self.ingredients(0))]

    def ingredients(self, trial: int) -> Ingredients:
        """Return what a copy of the backward pass begins from, for one draw."""
        draw: Any = self.draws.trial(trial)
        ones = np.ones(len(draw.inputs))
        return Ingredients(
            network=self.network,
            weights=tuple(layer.weight for layer in draw.params),
            inputs=tuple(leaf[trial] for leaf in self.evidence.inputs),
            preactivations=tuple(leaf[trial] for leaf in self.evidence.preactivations),
            slopes=tuple(leaf[trial] for leaf in self.evidence.slopes),
            prediction=self.evidence.prediction[trial],
            output_delta=self.evidence.output_delta[trial],
            sample_weight=ones if draw.weights is None else draw.weights,
        )

    def _judge(
        self, leaves_of: Callable[[int], list[np.ndarray]], trials: range, bound: float
    ) -> _Outcome:
        worst, worst_trial = NO_DIFFERENCE, 0
        failures: dict[str, Difference] = {}
        faults: list[str] | None = None
        for trial in trials:
            got = leaves_of(trial)
            wrong = False
            for name, leaf, right, scale in zip(
                self.names, got, self.right, self.scales, strict=True
            ):
                difference = compare(name, leaf, right[trial], scale[trial])
                if difference.size > worst.size:
                    worst, worst_trial = difference, trial
                if difference.size > bound:
                    wrong = True
                    before = failures.get(name, NO_DIFFERENCE)
                    failures[name] = max(before, difference, key=lambda d: d.size)
            if wrong:
                reasons = diagnose(
                    self.ingredients(trial),
                    [np.asarray(leaf, np.float64) for leaf in got],
                    self.names,
                    tolerance=max(1e-7, bound / 10),
                )
                faults = reasons if faults is None else [f for f in faults if f in reasons]
        if not faults and failures:
            faults = self._empty([leaves_of(trial) for trial in trials], list(failures))
        return _Outcome(bound, worst, worst_trial, list(failures.values()), (), faults or ())

    def _empty(self, results: list[list[np.ndarray]], failing: list[str]) -> list[str]:
        """Return which of the failing leaves hold nothing in any trial: zeros, or NaN."""
        found, zero = [], ("0 throughout", lambda leaf: not leaf.any())
        for what, test in (zero, ("NaN", lambda leaf: (leaf != leaf).any())):  # noqa: PLR0124
            names = [
                name
                for number, name in enumerate(self.names)
                if name in failing and all(test(leaves[number]) for leaves in results)
            ]
            if names:
                which = "every array" if len(names) == len(self.names) else ", ".join(names)
                found.append(f"{which} is {what}")
        return found

    def _shape_findings(self, leaves: list[np.ndarray]) -> list[str]:
        """Return what is wrong with the number, shapes or dtypes of a gradient's leaves."""
        expected = [leaf.shape[1:] for leaf in self.right]
        if len(leaves) != len(expected):
            listing = ", ".join(f"{n} {s}" for n, s in zip(self.names, expected, strict=True))
            found = [f"expected {len(expected)} arrays ({listing}), got {len(leaves)}"]
            if len(leaves) == len(expected) + 1 and leaves[0].ndim == 0:
                found[0] += ", the first a number: the loss is not asked for"
            elif len(leaves) > len(expected) and not any(leaf.ndim for leaf in leaves):
                found[0] += (
                    " numbers: lists of Python's are taken apart, np.array makes one of them"
                )
            return found
        findings = []
        for name, leaf, shape in zip(self.names, leaves, expected, strict=True):
            if leaf.dtype.kind not in "iu" and not jnp.issubdtype(leaf.dtype, jnp.floating):
                findings.append(f"{name}: expected real numbers, got {leaf.dtype}")
            elif leaf.shape != shape:
                turned = " (transposed)" if leaf.ndim == 2 and leaf.shape == shape[::-1] else ""
                findings.append(f"{name}: expected shape {shape}, got {leaf.shape}{turned}")
        return findings


FLAT_TARGETS = "targets (N, 1), where it is right for targets (N,)"


def _right_for_flat_targets(judge: "Judge", gradient_fn: GradientFunction) -> bool:
    """Tell whether a function that is wrong for targets (N, 1) is right for the same as (N,)."""
    if judge.draws.targets.shape[2:] != (1,):
        return False
    flat = judge.draws._replace(targets=judge.draws.targets[:, :, 0])
    outcome = Judge(judge.network, flat, judge.evidence, judge.scales).users(gradient_fn)
    return not (outcome.failures or outcome.findings)


def _with_equal_widths(
    gradient_fn: GradientFunction, network: Network, draws: Draws, rng: np.random.Generator
) -> _Outcome:
    """Return what is found where all widths are equal, so that products of any shapes fit."""
    square = dataclasses.replace(network, sizes=(_SQUARE,) * len(network.sizes))
    weights = None if draws.weights is None else draws.weights[0]
    given = Draws((), None, None, weights)  # pyright: ignore[reportArgumentType]
    classes = draws.targets.ndim == 2
    n_examples = draws.inputs.shape[1]
    draws = make_draws(square, 4, rng, classes=classes, n_examples=n_examples, given=given)
    return Judge(square, draws, gather(square, draws, FLOAT64)).users(gradient_fn)


def _call(gradient_fn: GradientFunction, draw: Draws) -> Any:
    """Return the user's gradient of one draw; its arrays are copies that it may overwrite.

    NumPy arrays serve functions of both kinds; one that needs JAX's own (`.at[…]`) gets them then.

    Raises:
        AttributeError: The function's own, where it is not that.
    """
    with jax.enable_x64(True):
        copies = jax.tree.map(np.array, draw)
        try:
            return gradient_fn(copies.params, copies.inputs, copies.targets)
        except AttributeError as error:
            arrays = jax.tree.map(jnp.asarray, draw)
            with suppress(AttributeError):
                return gradient_fn(arrays.params, arrays.inputs, arrays.targets)
            raise error


def flat_gradient(tree: Any) -> list[np.ndarray]:
    """Return the arrays of a user's gradient in their order; None, a missing bias, is left out.

    A dictionary's order is its own (JAX would sort it, bias before weight).
    """
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in flat_gradient(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in flat_gradient(value)]
    if hasattr(tree, "weight") and hasattr(tree, "bias"):
        return flat_gradient((tree.weight, tree.bias))
    return [np.asarray(tree)]


def _place_of(error: Exception, function: Callable[..., Any]) -> str:
    """Return in words the last line of the function's own file that led to what it raised."""
    file = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", None)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return f" in line {lines[-1]}" if lines else ""


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    module = inspect.getmodule(function)
    return f"{module.__name__}.{name}" if module and module.__name__ != "__main__" else name
