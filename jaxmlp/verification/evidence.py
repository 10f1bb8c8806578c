"""What a comparison rests on: random draws, our gradient, the oracle's, the scale of rounding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.activations import ACTIVATIONS
from jaxmlp.batch import check_batch
from jaxmlp.gradients import loss_and_gradient, loss_and_gradient_of
from jaxmlp.losses import LOSSES
from jaxmlp.network import Network, Parameters
from jaxmlp.verification import oracles
from jaxmlp.verification.cases import (
    N_EXAMPLES,
    Draws,
    draw_inputs,
    draw_params,
    draw_targets,
    draw_weights,
    tamed,
)
from jaxmlp.verification.comparison import NO_DIFFERENCE, Difference, compare, leaf_names

HostArray = Any  # a NumPy array; a tracer while it is computed
_FEW_DRAWS = 32


class Evidence(NamedTuple):
    """What one compiled program yields on every draw: leading axis of trials throughout.

    `ours` and `oracle` are (loss, gradient). `inputs`, `preactivations`, `slopes` and `deltas` are
    those of our pass, a tuple over the layers; `prediction` is (T, N, K), the softmax or its like,
    and `output_delta` is Δ_L without sample weights.
    """

    ours: tuple[HostArray, Parameters]
    oracle: tuple[HostArray, Parameters]
    inputs: tuple[HostArray, ...]
    preactivations: tuple[HostArray, ...]
    slopes: tuple[HostArray, ...]
    deltas: tuple[HostArray, ...]
    prediction: HostArray
    output_delta: HostArray


def compiler_options() -> dict[str, Any] | None:
    """Return options that make XLA compile small programs quickly on a CPU, and None elsewhere."""
    if jax.default_backend() != "cpu":
        return None
    return _quick_cpu_options()


@cache
def _quick_cpu_options() -> dict[str, Any]:
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    }
    kept = {}
    for name, value in wanted.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
            kept[name] = value
        except jax.errors.JaxRuntimeError:  # this version has no such option
            continue
    return kept


@contextmanager
def exactly(dtype: np.dtype) -> Iterator[None]:
    """Compute in this dtype: 64-bit mode where it is float64, and every product in full."""
    with jax.enable_x64(dtype == np.float64), jax.default_matmul_precision("highest"):
        yield


@cache
def compiled(function: Callable[..., Any], many: bool) -> Callable[[Network, Any], Any]:
    """Return the program of a function of a network and a draw, mapped over draws if `many`.

    It is one program for all who ask for it, compiled once for each network and size of a draw.
    """

    def run(network: Network, draw: Any) -> Any:
        return function(network, *draw)

    mapped = jax.vmap(run, in_axes=(None, 0)) if many else run
    return jax.jit(mapped, compiler_options=compiler_options())


def on_each_draw(
    program_of: Callable[[bool], Callable[[Network, Any], Any]], network: Network, *stacked: Any
) -> Any:
    """Return a program's results on every draw, stacked on the host.

    A program of one draw compiles in three quarters of the time of one that maps over them; of many
    draws it would take longer to call for each.

    Args:
        program_of: Returns the program, `compiled` for many draws or for one.
        network: The network.
        stacked: What a draw consists of, every array with a leading axis of trials.

    Returns:
        The results, every array with that axis.
    """
    trials = len(jax.tree.leaves(stacked)[0])
    if trials > _FEW_DRAWS:
        return jax.device_get(program_of(True)(network, stacked))
    program = program_of(False)
    results = [
        program(network, jax.tree.map(lambda leaf, at=trial: leaf[at], stacked))
        for trial in range(trials)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(results))


def gather(
    network: Network, draws: Draws, dtype: np.dtype, oracle_dtype: np.dtype | None = None
) -> Evidence:
    """Return our gradient and the oracle's for every draw, in one compiled program.

    Args:
        network: The network.
        draws: With a leading axis of trials; rounded to `dtype`.
        dtype: What ours is computed in.
        oracle_dtype: What the oracle is computed in, from the rounded draws; None means `dtype`.

    Returns:
        The evidence, on the host.
    """
    oracle_dtype = oracle_dtype or dtype
    with exactly(oracle_dtype):
        program_of = partial(_program_of_both, oracle_dtype)
        return on_each_draw(program_of, network, in_dtype(draws, dtype))


@cache
def _program_of_both(oracle_dtype: np.dtype, many: bool) -> Callable[[Network, Any], Evidence]:
    """Return the program that `gather` runs."""

    def judge(network: Network, draw: Any) -> Evidence:
        ours, result = loss_and_gradient_of(network, draw.params, check_batch(network, *draw))
        plain = partial(oracles.plain_loss, network.activations, network.loss)
        names = (*network.activations, _last_activation(network))
        slopes = [
            ACTIVATIONS[name].derivative(z)
            for name, z in zip(names, result.trace.preactivations, strict=True)
        ]
        logits, head = result.trace.preactivations[-1], LOSSES[network.loss]
        return Evidence(
            ours,
            jax.value_and_grad(plain)(*in_dtype(draw, oracle_dtype)),
            result.trace.inputs,
            result.trace.preactivations,
            tuple(slopes),
            result.deltas,
            jax.vmap(head.prediction)(logits),
            jax.vmap(head.gradient)(logits, draw.targets),
        )

    return compiled(judge, many)


def _last_activation(network: Network) -> str:
    """Return the activation that a network whose output is not linear would have there."""
    if network.activations:
        return network.activations[-1]
    return network.activation if isinstance(network.activation, str) else "identity"


def our_gradients(network: Network, draws: Draws, dtype: np.dtype) -> tuple[HostArray, Parameters]:
    """Return our (loss, gradient) alone for every draw, computed in this dtype."""
    with exactly(dtype):
        ours = partial(compiled, loss_and_gradient)
        return on_each_draw(ours, network, *in_dtype(draws, dtype))


def in_dtype(tree: Any, dtype: np.dtype) -> Any:
    """Return the tree with every float in the dtype; class indices stay integers."""

    def convert(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(convert, tree)


def make_draws(
    network: Network,
    trials: int,
    rng: np.random.Generator,
    *,
    classes: bool = True,
    weighted: bool = False,
    n_examples: int = N_EXAMPLES,
    zeros: bool = True,
    margin: float = 0.0,
    given: Draws | None = None,
) -> Draws:
    """Return random draws of a network, or of what is not given of them.

    Args:
        network: The network.
        trials: T, the number of draws.
        rng: Where they come from.
        classes: Whether targets of softmax cross-entropy are indices or distributions.
        weighted: Whether there are sample weights.
        n_examples: N, the examples of each draw.
        zeros: Whether some units are exactly at the kink of their activation.
        margin: The least distance of all other units from a jump of f′: draws are made until there
            are enough that keep it.
        given: Fixed values without an axis of trials; None (or an empty tree) where to be drawn.

    Returns:
        Draws with a leading axis T, float64.
    """
    enough: list[Draws] = []
    while sum(len(draws.inputs) for draws in enough) < trials:
        draws, clear = _draw(
            network, trials, rng, classes, weighted, n_examples, zeros, given, margin
        )
        enough.append(jax.tree.map(lambda leaf, at=clear: leaf[at], draws))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:trials], *enough)


def _draw(
    network: Network,
    trials: int,
    rng: np.random.Generator,
    classes: bool,
    weighted: bool,
    n_examples: int,
    zeros: bool,
    given: Draws | None,
    margin: float,
) -> tuple[Draws, np.ndarray]:
    """Return draws, and which of them (T,) keep the margin."""
    shape = (trials, n_examples)

    def repeated(value: Any) -> Any:
        return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (trials, *np.shape(leaf))), value)

    fixed = given or Draws((), None, None, None)  # pyright: ignore[reportArgumentType]
    inputs = draw_inputs(network, shape, rng) if fixed.inputs is None else repeated(fixed.inputs)
    targets = draw_targets(network, shape, classes, rng)
    if fixed.targets is not None:
        targets = repeated(fixed.targets)
    weights = draw_weights(shape, rng) if weighted else None
    if fixed.weights is not None:
        weights = repeated(fixed.weights)
    if fixed.params:
        return Draws(repeated(fixed.params), inputs, targets, weights), np.ones(trials, bool)
    params = draw_params(network, trials, rng, zeros)
    z, preactivations = inputs, []
    for number, (weight, bias) in enumerate(params):
        h = z if number == 0 else oracles.NUMPY_ACTIVATIONS[network.activations[number - 1]](z)
        z = h @ np.swapaxes(weight, 1, 2) + (0 if bias is None else bias[:, None, :])
        preactivations.append(z)
    draws = Draws(tamed(network, params, z), inputs, targets, weights)
    return draws, off_kinks(network, preactivations, margin)


def uncancelled(
    network: Network, evidence: Evidence, draws: Draws, slope: float = 0.0
) -> list[np.ndarray]:
    """Return the scale of rounding of each leaf: its largest entry (T,) if no sum cancelled.

    It is both passes with absolute values: forward |W| |a| + |b| through |f′|, at the output
    |y| s + |t|, backward (|W|ᵀ |δ|) ∘ |f′|, and at last |Δ|ᵀ |A| / Σw.

    Args:
        network: The network.
        evidence: Of our pass.
        draws: What it was made of.
        slope: The least size that f′ is taken to have: 1 where the formula for it may cancel, as
            that of tanh′ = 1 − tanh² does in `jax.grad`.

    Returns:
        A scale (T,) for every leaf.
    """
    inputs = [_size(evidence.inputs[0])]
    slopes = [np.maximum(_size(leaf), slope) for leaf in evidence.slopes]
    for number, (weight, bias) in enumerate(draws.params[:-1]):
        z = inputs[-1] @ np.swapaxes(_size(weight), 1, 2)
        z = z if bias is None else z + _size(bias)[:, None, :]
        a = _size(evidence.inputs[number + 1])
        inputs.append(np.maximum(a, slopes[number] * z))

    targets, prediction = draws.targets, _size(evidence.prediction)
    if targets.shape != prediction.shape and _is_softmax(network):
        targets = np.eye(network.sizes[-1])[targets]
    targets = np.reshape(targets, prediction.shape)
    total = _size(targets).sum(axis=-1, keepdims=True) if _is_softmax(network) else 1
    deltas = [prediction * total + _size(targets)]
    if draws.weights is not None:
        deltas[0] = deltas[0] * draws.weights[:, :, None]
    for number in reversed(range(len(inputs) - 1)):
        above = deltas[0] @ _size(draws.params[number + 1].weight)
        deltas.insert(0, above * slopes[number])
    return _contracted_sizes(network, inputs, deltas, draws)


def contracted(network: Network, evidence: Evidence, draws: Draws) -> list[np.ndarray]:
    """Return the largest entry (T,) of |Δ|ᵀ |A| / Σw and of |Δ|ᵀ 1 / Σw for every leaf."""
    deltas = [_size(leaf) for leaf in evidence.deltas]
    return _contracted_sizes(network, [_size(leaf) for leaf in evidence.inputs], deltas, draws)


def _contracted_sizes(
    network: Network, inputs: list[np.ndarray], deltas: list[np.ndarray], draws: Draws
) -> list[np.ndarray]:
    n_trials, n_examples = draws.inputs.shape[:2]
    total = np.full(n_trials, n_examples) if draws.weights is None else draws.weights.sum(axis=1)
    scales: list[np.ndarray] = []
    for a, delta in zip(inputs, deltas, strict=True):
        scales.append((np.swapaxes(delta, 1, 2) @ a).max(axis=(1, 2)) / total)
        if network.bias:
            scales.append(delta.sum(axis=1).max(axis=1) / total)
    return scales


def _size(array: Any) -> np.ndarray:
    return np.abs(np.asarray(array, np.float64))


def _is_softmax(network: Network) -> bool:
    return network.loss == "softmax_cross_entropy"


def off_kinks(network: Network, preactivations: Sequence[Any], margin: float) -> np.ndarray:
    """Return which trials (T,) have no preactivation within the margin of a jump of f′.

    There, rounding decides the side and with it the derivative; a value of exactly 0 is no doubt.
    """
    clear = np.ones(len(preactivations[0]), bool)
    for name, z in zip(network.activations, preactivations, strict=False):
        if name in ("relu", "leaky_relu"):
            near = (np.abs(z) < margin) & (z != 0)
            clear &= ~near.any(axis=(1, 2))
    return clear


_CANCELLED = 10  # a digit


def worst_of(
    network: Network, evidence: Evidence, draws: Draws, counted: np.ndarray
) -> tuple[Difference, int]:
    """Return the worst difference between our gradient and the oracle's, and its trial.

    Only the trials `counted` (T,) are looked at. The scale is that of the last contraction, but
    where sums on the way to it cancelled by more than `_CANCELLED`: there two right passes differ
    by up to 5e-13 of it, in 2 of 65,000 networks.
    """
    scales = [
        np.maximum(last, whole / _CANCELLED)
        for last, whole in zip(
            contracted(network, evidence, draws), uncancelled(network, evidence, draws), strict=True
        )
    ]
    worst, trial = NO_DIFFERENCE, 0
    pairs = zip(
        leaf_names(network),
        jax.tree.leaves(evidence.ours[1]),
        jax.tree.leaves(evidence.oracle[1]),
        scales,
        strict=True,
    )
    for name, ours, theirs, scale in pairs:
        axes = tuple(range(1, ours.ndim))
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(axis=axes)
            largest = np.maximum(np.abs(theirs).max(axis=axes), scale)
            size = np.where(distance == 0, 0, distance / largest)
        size[~np.isfinite(distance) | np.isnan(size)] = np.inf
        size[~counted] = 0
        number = int(np.argmax(size))
        if size[number] > worst.size:
            worst = compare(name, ours[number], theirs[number], scale[number])
            trial = number
    return worst, trial
