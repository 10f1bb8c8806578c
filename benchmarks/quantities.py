"""What each quantity costs beside our own gradient, in one run, and what it takes of memory.

Every function is timed blocked and warmed up, in rounds that go through all of them in an order
drawn anew. Its time in a round is the least of five calls, as what disturbs one only adds to it; a
ratio is the median over the rounds of its time over the gradient's in the same round. The products
with the Hessian and the Gauss–Newton matrix stand beside those of automatic differentiation, after
both were compared.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp
from benchmarks.rows import Row, chosen, measured

# Networks and batch sizes: on a GPU one that is all launches, and one that is arithmetic.
CASES = {
    "cpu": [((784, 800, 800, 10), 128), ((784, 800, 800, 10), 512)],
    "gpu": [((784, 800, 800, 10), 512), ((784, 4096, 4096, 10), 4096)],
}
QUICK = [((784, 32, 10), 32)]
# Of our own gradient's time.
BOUNDS = {
    "norms": 0.65,
    "gradient and norms": 1.05,
    "clipped sum": 1.05,
    "second moment": 1.45,
    "gradient and KFAC factors, empirical": 2.0,
    "Hessian product": 2.25,
    "Gauss–Newton product": 1.7,
}


EQUAL = 1e-9  # in float64, of the largest entry of an array


def both(network: jaxmlp.Network, *functions: Callable[..., Any]) -> Callable[..., Any]:
    """Return one program that yields what each function yields, sharing their passes."""
    return jax.jit(lambda params, x, t: [function(network, params, x, t) for function in functions])


def rivals(network: jaxmlp.Network, vector: Any) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """Return our functions of (params, inputs, targets), and automatic differentiation's."""

    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), vector)

    def like(params: Any) -> Any:
        """Return the vector in the dtype of the parameters."""
        return vector if params[0].weight.dtype == np.float32 else wide

    def gradient(params: Any, x: Any, t: Any) -> Any:
        return jaxmlp.loss_and_gradient(network, params, x, t)[1]

    def plain_logits(params: Any, x: Any) -> Any:
        h = x
        for number, (weight, bias) in enumerate(params):
            h = h @ weight.T + bias
            h = jax.nn.sigmoid(h) if number < len(params) - 1 else h
        return h

    def plain_loss(params: Any, x: Any, t: Any) -> Any:
        z = plain_logits(params, x)
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - z[jnp.arange(len(t)), t])

    @jax.jit
    def hessian_product(params: Any, x: Any, t: Any, vector: Any) -> Any:
        return jax.jvp(lambda p: jax.grad(plain_loss)(p, x, t), (params,), (vector,))[1]

    @jax.jit
    def gauss_newton_product(params: Any, x: Any, t: Any, vector: Any) -> Any:
        z, tangent = jax.jvp(lambda p: plain_logits(p, x), (params,), (vector,))
        y = jax.nn.softmax(z)
        output = y * (tangent - jnp.sum(y * tangent, axis=1, keepdims=True)) / len(x)
        return jax.vjp(lambda p: plain_logits(p, x), params)[1](output)[0]

    ours = {
        "gradient": gradient,
        "norms": partial(jaxmlp.per_example_gradient_norms, network),
        "gradient and norms": both(
            network, jaxmlp.loss_and_gradient, jaxmlp.per_example_gradient_norms
        ),
        "clipped sum": lambda p, x, t: jaxmlp.clipped_gradient_sum(network, p, x, t, 1.0),
        "second moment": partial(jaxmlp.gradient_second_moment, network),
        "gradient and KFAC factors, empirical": both(
            network, jaxmlp.loss_and_gradient, partial(jaxmlp.kfac_factors, fisher="empirical")
        ),
        "noise scale": partial(jaxmlp.gradient_noise_scale, network),
        "Gram matrix": partial(jaxmlp.gradient_gram_matrix, network),
        "Gauss–Newton diagonal, exact": partial(jaxmlp.gauss_newton_diagonal, network),
    }
    # Compiled, as in anybody's step: the checks of the arguments, 0.1 to 0.4 ms, are not timed. The
    # vector is an argument of the program, as in theirs.
    ours = {name: jax.jit(function) for name, function in ours.items()}
    hessian = jax.jit(partial(jaxmlp.hessian_vector_product, network))
    gauss_newton = jax.jit(partial(jaxmlp.gauss_newton_vector_product, network))
    ours |= {
        "Hessian product": lambda p, x, t: hessian(p, x, t, like(p)),
        "Gauss–Newton product": lambda p, x, t: gauss_newton(p, x, t, like(p)),
    }
    theirs = {
        "gradient": jax.jit(jax.grad(plain_loss)),
        "Hessian product": lambda p, x, t: hessian_product(p, x, t, like(p)),
        "Gauss–Newton product": lambda p, x, t: gauss_newton_product(p, x, t, like(p)),
    }
    return ours, theirs


def check_equal(ours: dict[str, Callable], theirs: dict[str, Callable], *data: Any) -> None:
    """Raise AssertionError unless both yield the same in float64 where both exist."""
    with jax.enable_x64(True):
        data = jax.tree.map(
            lambda x: x.astype(np.float64) if jnp.issubdtype(x.dtype, np.floating) else x, data
        )
        for name, function in theirs.items():
            pairs = zip(
                jax.tree.leaves(ours[name](*data)), jax.tree.leaves(function(*data)), strict=True
            )
            for mine, other in pairs:
                difference = float(jnp.max(jnp.abs(mine - other)) / jnp.max(jnp.abs(other)))
                assert difference < EQUAL, (name, difference)


def timed(functions: dict[str, Callable], data: Any, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every function in every round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(3):
            jax.block_until_ready(function(*data))
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(functions)).tolist():  # nobody always after the same one
            function, calls = functions[name], []
            for _ in range(5):
                begin = time.perf_counter()
                jax.block_until_ready(function(*data))
                calls.append(time.perf_counter() - begin)
            times[name].append(min(calls))
    return times


def memory() -> tuple[float, float, float]:
    """Return the bytes that XLA plans for a gradient, the clipped sum and vmap(grad), in MB."""
    network = jaxmlp.Network((5120, 2560, 1280))
    shapes = jax.eval_shape(lambda: jaxmlp.init(network, jax.random.key(0)))
    x = jax.ShapeDtypeStruct((32, 5120), np.float32)
    t = jax.ShapeDtypeStruct((32,), np.int32)

    def each(params: Any, x: Any, t: Any) -> Any:
        one = jax.vmap(jax.grad(partial(jaxmlp.loss, network)), (None, 0, 0))
        gradients = one(params, x[:, None], t[:, None])
        squares = [
            jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(gradients)
        ]
        factors = jnp.minimum(1, 1 / jnp.sqrt(sum(squares)))
        return jax.tree.map(lambda leaf: jnp.einsum("n,n...->...", factors, leaf), gradients)

    def planned(function: Callable[..., Any]) -> float:
        analysis: Any = jax.jit(function).lower(shapes, x, t).compile().memory_analysis()
        return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 1e6

    return (
        planned(partial(jaxmlp.loss_and_gradient, network)),
        planned(lambda p, x, t: jaxmlp.clipped_gradient_sum(network, p, x, t, 1.0)),
        planned(each),
    )


def rows(quick: bool, wanted: Sequence[str] = ()) -> Iterator[list[Row]]:
    """Yield each case's times of every quantity, with their ratios; and then the memory."""
    checked = set()
    for sizes, size in QUICK if quick else CASES[jax.default_backend()]:
        case = f"{'-'.join(map(str, sizes))} sigmoid B={size}"
        if not chosen(case, wanted):
            continue
        network = jaxmlp.Network(sizes)
        params, vector = (jaxmlp.init(network, jax.random.key(seed)) for seed in (0, 1))
        rng = np.random.default_rng(0)
        x = jax.device_put(rng.normal(size=(size, network.sizes[0])).astype(np.float32))
        t = jax.device_put(rng.integers(network.sizes[-1], size=size).astype(np.int32))
        ours, theirs = rivals(network, vector)
        if sizes not in checked:
            check_equal(ours, theirs, params, x[:128], t[:128])
            checked.add(sizes)
        named = ours | {f"{name}, jax's": function for name, function in theirs.items()}
        times = timed(named, (params, x, t), 1 if quick else 7)
        result = []
        for name, values in times.items():
            who = "jax" if name.endswith(", jax's") else "jaxmlp"
            name = name.removesuffix(", jax's")
            milliseconds = measured([1e3 * value for value in values])
            result.append(Row("quantities", case, name, who, "ms", **milliseconds))
            pairs = zip(values, times["gradient"], strict=True)
            bound = f"≤ {BOUNDS[name]}" if who == "jaxmlp" and name in BOUNDS else ""
            ratio = statistics.median(a / b for a, b in pairs)
            of = f"{name}, of our gradient's time"
            result.append(Row("quantities", case, of, who, "×", ratio, bound=bound))
        yield result
    if not quick and chosen("memory", wanted):
        gradient, clipped, each = memory()
        case = "5120-2560-1280 sigmoid B=32"
        result = [
            Row("quantities", case, f"{name}, memory by XLA", who, "MB", value)
            for who, name, value in (
                ("jaxmlp", "gradient", gradient),
                ("jaxmlp", "clipped sum", clipped),
                ("vmap(jax.grad)", "clipped sum", each),
            )
        ]
        of = "clipped sum, of the gradient's memory"
        result.append(
            Row("quantities", case, of, "jaxmlp", "×", clipped / gradient, bound="≤ 1.05")
        )
        yield result
