"""The loop over steps: one by one on a CPU, in blocks on a GPU, and the same in both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlp import Network, fit, init
from jaxmlp.training import epochs, loops


@pytest.fixture
def blocks(monkeypatch):
    """Have loops go in blocks of four, on whatever device."""

    def four():
        return 4

    monkeypatch.setattr(loops, "steps_a_look", four)
    monkeypatch.setattr(epochs, "steps_a_look", four)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_a_gpu_is_looked_at_less_often():
    assert loops.steps_a_look() == (32 if jax.default_backend() == "gpu" else 1)
    with jax.default_device(jax.devices("cpu")[0]):
        assert loops.steps_a_look() == 1
    with jax.default_device("gpu"):  # by name; nothing is computed there
        assert loops.steps_a_look() == 32


@pytest.mark.parametrize(
    ("first", "end"), [(0, 0), (0, 3), (0, 4), (0, 11), (5, 5), (5, 14), (7, 23), (9, 4)]
)
def test_the_numbers_come_in_order_each_once(blocks, first, end):
    def step(number, carry):
        seen, count = carry
        return seen.at[count].set(number), count + 1

    begin = jnp.full(32, -1, jnp.int32), jnp.int32(0)
    loop = jax.jit(lambda first, end: loops.loop_over(first, end, step, begin))
    seen, count = loop(np.int32(first), np.int32(end))
    expected = list(range(first, end))
    assert count == len(expected)
    np.testing.assert_array_equal(seen[: len(expected)], expected)
    assert np.all(seen[len(expected) :] == -1)


def trained(watch=None):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, t = rng.normal(size=(107, 5)), rng.integers(3, size=107)
        network = Network((5, 4, 3), "tanh")
        params = init(network, jax.random.key(0), dtype=np.float64)
        return fit(
            network, params, x, t, key=jax.random.key(1), epochs=3, batch_size=8, dropout=0.2,
            watch=watch,
        )  # fmt: skip


def test_training_in_blocks_is_training_step_by_step(blocks, monkeypatch):
    places = []
    monkeypatch.setattr(epochs, "_PIECE_SECONDS", 1e-9)
    in_blocks = trained(lambda snapshot: places.append(snapshot.step))
    # 0 where an epoch is over: the first, of 14 steps, is one piece, as no speed is known yet.
    assert places == [0, 4, 8, 0, 4, 8, 0]
    monkeypatch.setattr(loops, "steps_a_look", lambda: 1)
    jax.clear_caches()
    alone = trained()
    for ours, theirs in zip(
        jax.tree.leaves(in_blocks.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert in_blocks.history[-1]["train_loss"] == pytest.approx(
        alone.history[-1]["train_loss"], rel=1e-12
    )
