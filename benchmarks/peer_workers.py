"""The peers of `benchmarks.peers`, each to run in a process of its own.

    python -m benchmarks.peer_workers NAME FOLDER SECONDS

serves one of them. A peer is imported inside its own function only, so that no environment need
hold them all. A step of JAX's takes and yields (parameters, key).
"""
# pyright: reportMissingImports=false

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import THREADS
from benchmarks.peers import CLIP, NOISE, RATE, Offer, seconds
from benchmarks.processes import serve, versions

MICROBATCH = {"vmap(grad)": 32, "jax_privacy": 128}  # the fastest of 8, 32 and 128


def flat(leaves: Any) -> np.ndarray:
    """Return all leaves, in the order weight, bias, weight, bias, as one vector of float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def parameters(problem: Any, layer: Callable[..., Any] = lambda *pair: pair) -> Any:
    """Return the parameters as JAX's arrays, a `layer` of weight and bias each."""
    import jax

    pairs = [(problem[f"w{number}"], problem[f"b{number}"]) for number in (0, 1)]
    return jax.device_put(tuple(layer(*pair) for pair in pairs))


def jax_steps(problem: Any, start: Any, steps: dict[str, Callable[..., Any]]) -> Offer:
    """Return jitted steps on a tree of parameters, each timed as a chain, with their values."""
    import jax

    x, t = jax.device_put(problem["x"]), jax.device_put(problem["t"])
    values, calls = {}, {}
    for name, step in steps.items():
        compiled = jax.jit(step)
        for suffix, noise in (("", 0.0), (", noise", NOISE))[: 1 if name == "plain step" else 2]:
            after, _ = compiled(start, x, t, jax.random.key(1), noise)
            values[name + suffix] = flat(jax.tree.leaves(after)) - flat(jax.tree.leaves(start))
        state = [start, jax.random.key(2)]

        def call(compiled: Any = compiled, state: list = state) -> None:
            state[:] = jax.block_until_ready(compiled(state[0], x, t, state[1], NOISE))

        calls[name] = call
    return Offer(values, calls, ("jax",))


def normals(key: Any, tree: Any, scale: Any) -> Any:
    """Return Gaussian noise for a tree, each leaf's from its own key."""
    import jax

    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [
        scale * jax.random.normal(own, leaf.shape, leaf.dtype)
        for leaf, own in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def descend(params: Any, total: Any, count: int, key: Any, noise: Any) -> Any:
    """Return the parameters after a step along a sum, with Gaussian noise on it, and the key."""
    import jax

    key, own = jax.random.split(key)
    drawn = normals(own, total, noise * CLIP)
    return jax.tree.map(lambda p, g, n: p - RATE / count * (g + n), params, total, drawn), key


def ours(problem: Any) -> Offer:
    import jax
    import jax.numpy as jnp
    import optax

    import jaxmlp
    from jaxmlp.batch import Batch
    from jaxmlp.training.regularization import Privacy, Regularization
    from jaxmlp.training.steps import TrainingState, training_step

    network = jaxmlp.Network(
        (problem["x"].shape[1], len(problem["b0"]), len(problem["b1"])), precision="highest"
    )

    def step(params: Any, x: Any, t: Any, key: Any, regularization: Regularization) -> Any:
        key, own = jax.random.split(key)
        state, batch = TrainingState(params, ()), Batch(x, t, jnp.ones(len(x)))
        optimizer = optax.scale(-RATE)
        state = state._replace(optimizer_state=optimizer.init(params))
        state, _ = training_step(network, optimizer, state, batch, regularization, key=own)
        return state.params, key

    def private(params: Any, x: Any, t: Any, key: Any, noise: Any) -> Any:
        privacy = Privacy(jnp.float32(CLIP), noise, jnp.float32(len(x)))
        return step(params, x, t, key, Regularization(privacy=privacy))

    def plain(params: Any, x: Any, t: Any, key: Any, noise: Any) -> Any:
        return step(params, x, t, key, Regularization())

    params = parameters(problem, jaxmlp.Layer)
    offer = jax_steps(problem, params, {"private step": private, "plain step": plain})
    data = (params, jax.device_put(problem["x"]), jax.device_put(problem["t"]))
    functions = {
        "norms": jaxmlp.per_example_gradient_norms,
        "variance": jaxmlp.gradient_variance,
        "KFAC factors": partial(jaxmlp.kfac_factors, fisher="sampled", key=jax.random.key(3)),
        "Gauss–Newton diagonal": jaxmlp.gauss_newton_diagonal,
    }
    calls = dict(offer.calls)
    for name, function in functions.items():
        alone = partial(function, network)

        def both(params: Any, x: Any, t: Any, alone: Any = alone) -> Any:
            return jaxmlp.loss_and_gradient(network, params, x, t)[1], alone(params, x, t)

        for title, program in ((name, alone), (f"{name} and gradient", jax.jit(both))):
            calls[title] = partial(lambda f: jax.block_until_ready(f(*data)), program)
    # In BackPACK's scaling: its gradients are of the mean loss, g_n / N.
    count = len(problem["x"])
    exact = jaxmlp.kfac_factors(network, *data)
    values = offer.values | {
        "norms": np.asarray(functions["norms"](network, *data), np.float64) ** 2 / count**2,
        "variance": flat(jax.tree.leaves(functions["variance"](network, *data))) / count**2,
        "KFAC factors, A": flat(
            f.inputs[:-1, :-1] for f in functions["KFAC factors"](network, *data)
        ),
        "KFAC factors, exact G": flat(f.deltas for f in exact),
        "Gauss–Newton diagonal": flat(
            jax.tree.leaves(functions["Gauss–Newton diagonal"](network, *data))
        ),
    }
    return Offer(values, calls, ("jax",))


def example_loss(params: Any, x: Any, t: Any) -> Any:
    """Return one example's loss, in plain JAX."""
    import jax

    (weight, bias), (last_weight, last_bias) = params
    z = last_weight @ jax.nn.sigmoid(weight @ x + bias) + last_bias
    return jax.nn.logsumexp(z) - z[t]


def vmap_grad(problem: Any) -> Offer:
    import jax
    import jax.numpy as jnp

    def clipped(params: Any, x: Any, t: Any) -> Any:
        gradients = jax.vmap(jax.grad(example_loss), (None, 0, 0))(params, x, t)
        squares = sum(
            jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(gradients)
        )
        factors = jnp.minimum(1, CLIP / jnp.sqrt(squares))
        return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), gradients)

    def whole(params: Any, x: Any, t: Any, key: Any, noise: Any) -> Any:
        return descend(params, clipped(params, x, t), len(x), key, noise)

    def pieces(params: Any, x: Any, t: Any, key: Any, noise: Any) -> Any:
        def add(carry: Any, piece: Any) -> Any:
            return jax.tree.map(jnp.add, carry, clipped(params, *piece)), None

        cut = [jnp.reshape(a, (-1, MICROBATCH["vmap(grad)"], *a.shape[1:])) for a in (x, t)]
        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), cut)
        return descend(params, total, len(x), key, noise)

    steps = {"private step": whole, "private step, microbatches": pieces}
    return jax_steps(problem, parameters(problem), steps)


def jax_privacy(problem: Any) -> Offer:
    import jax
    import jax_privacy

    def step(size: int | None) -> Callable[..., Any]:
        clipped = jax_privacy.clipped_grad(
            example_loss,
            l2_clip_norm=CLIP,
            batch_argnums=(1, 2),
            keep_batch_dim=False,
            microbatch_size=size,
        )

        def private(params: Any, x: Any, t: Any, key: Any, noise: Any) -> Any:
            use, key = jax.random.split(key)
            # Its Gaussian mechanism draws standard normals times this, a key for each leaf.
            privatizer = jax_privacy.noise_addition.gaussian_privatizer(
                stddev=noise * clipped.sensitivity(), prng_key=use
            )
            total = clipped(params, x, t)
            noisy, _ = privatizer.update(total, privatizer.init(params))
            return jax.tree.map(lambda p, g: p - RATE / len(x) * g, params, noisy), key

        return private

    steps = {
        "private step": step(None),
        "private step, microbatches": step(MICROBATCH["jax_privacy"]),
    }
    return jax_steps(problem, parameters(problem), steps)._replace(packages=("jax_privacy", "jax"))


def torch_model(problem: Any) -> tuple[Any, Any, Any]:
    """Return the network with the given parameters, the inputs and the classes, as tensors."""
    import torch

    torch.set_num_threads(THREADS)
    x = torch.from_numpy(problem["x"])
    t = torch.from_numpy(problem["t"].astype(np.int64))
    (hidden, inputs), outputs = problem["w0"].shape, len(problem["b1"])
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden), torch.nn.Sigmoid(), torch.nn.Linear(hidden, outputs)
    )
    with torch.no_grad():
        for parameter, name in zip(model.parameters(), ("w0", "b0", "w1", "b1"), strict=True):
            parameter.copy_(torch.from_numpy(problem[name]))
    return model, x, t


def opacus(problem: Any) -> Offer:
    import torch
    from opacus import PrivacyEngine

    def built(noise: float | None) -> tuple[Any, Callable[[], None]]:
        """Return a model and its step; a plain step where `noise` is None."""
        model, x, t = torch_model(problem)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        criterion: Any = torch.nn.CrossEntropyLoss()
        if noise is not None:
            loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, t), len(x))
            model, optimizer, criterion, _ = PrivacyEngine().make_private(
                module=model,
                optimizer=optimizer,
                criterion=criterion,
                data_loader=loader,
                noise_multiplier=noise,
                max_grad_norm=CLIP,
                poisson_sampling=False,
                grad_sample_mode="ghost",
            )

        def step() -> None:
            optimizer.zero_grad()
            criterion(model(x), t).backward()
            optimizer.step()

        return model, step

    values, calls = {}, {}
    for title, noise, timed in (
        ("private step", 0.0, False),
        ("private step, noise", NOISE, False),
        ("private step", NOISE, True),
        ("plain step", None, True),
    ):
        model, step = built(noise)
        before = flat(p.detach().numpy().copy() for p in model.parameters())
        if timed:
            calls[title] = step
        if not timed or noise is None:
            step()
            values[title] = flat(p.detach().numpy() for p in model.parameters()) - before
    return Offer(values, calls, ("opacus", "torch"))


def backpack(problem: Any) -> Offer:
    import torch
    from backpack import backpack as computing
    from backpack import extend
    from backpack.extensions import KFAC, KFLR, BatchL2Grad, DiagGGNExact, Variance

    model, x, t = torch_model(problem)
    model, criterion = extend(model), extend(torch.nn.CrossEntropyLoss())

    def backward(extension: Any) -> None:
        model.zero_grad()
        loss = criterion(model(x), t)
        with computing(extension):
            loss.backward()

    def saved(extension: Any) -> list[Any]:
        backward(extension)
        return [getattr(p, extension.savefield) for p in model.parameters()]

    calls = {
        "norms": partial(backward, BatchL2Grad()),
        "variance": partial(backward, Variance()),
        "KFAC factors": partial(backward, KFAC(mc_samples=1)),
        "Gauss–Newton diagonal": partial(backward, DiagGGNExact()),
    }
    values = {
        "norms": flat([sum(saved(BatchL2Grad()))]),
        "variance": flat(saved(Variance())),
        "KFAC factors, A": flat(factors[1] for factors in saved(KFAC())[::2]),
        "KFAC factors, exact G": flat(factors[0] for factors in saved(KFLR())[::2]),
        "Gauss–Newton diagonal": flat(saved(DiagGGNExact())),
    }
    return Offer(values, calls, ("backpack-for-pytorch", "torch"))


WORKERS = {
    "ours": ours,
    "vmap(grad)": vmap_grad,
    "jax_privacy": jax_privacy,
    "Opacus": opacus,
    "BackPACK": backpack,
}


def begin() -> Callable[[Any], Any]:
    """Return what answers: None by what is offered, its values written; a quantity by its time."""
    name, folder, least = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    with np.load(folder / "problem.npz") as archive:
        problem = dict(archive)
    offer = WORKERS[name](problem)
    np.savez(folder / f"{name}.npz", allow_pickle=False, **offer.values)  # pyright: ignore
    for call in offer.calls.values():
        call()

    def handle(question: Any) -> Any:
        if question is None:
            return {"versions": versions(*offer.packages), "calls": list(offer.calls)}
        return seconds(offer.calls[question], least)

    return handle


if __name__ == "__main__":
    serve(begin)
