"""The loop over steps: one by one on a CPU, in blocks on a GPU, and the same in both."""

import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.exceptions import ConvergenceWarning

from jaxmlp import MLPClassifier, Network, batch, fit, fit_ensemble, init, init_members
from jaxmlp.batch import Batch, pass_batch
from jaxmlp.data import open_stored
from jaxmlp.scaling import PIXELS
from jaxmlp.training import batches, epochs, loops, regularization, steps

pytestmark = pytest.mark.slow  # on the default Python alone: compiling takes most of it


@pytest.fixture
def blocks(monkeypatch):
    """Have training go as on a GPU, on whatever device, in blocks of four steps."""
    monkeypatch.setattr(loops, "_GPU_BLOCK", 4)
    for module in (loops, batches, epochs, steps):
        monkeypatch.setattr(module, "on_a_gpu", lambda: True)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def block_sizes(monkeypatch):
    """The batches of each block of which the classes are gathered together."""
    sizes, block_of = set(), batches.block_of

    def seen(examples, order, first, count, *, batch_size):
        sizes.add(count)
        return block_of(examples, order, first, count, batch_size=batch_size)

    monkeypatch.setattr(batches, "block_of", seen)
    return sizes


def test_a_gpu_is_looked_at_less_often():
    assert loops.steps_a_look() == (32 if jax.default_backend() == "gpu" else 1)
    with jax.default_device(jax.devices("cpu")[0]):
        assert loops.steps_a_look() == 1
    with jax.default_device("gpu"):  # by name; nothing is computed there
        assert loops.steps_a_look() == 32


@pytest.mark.parametrize(
    ("first", "end"), [(0, 0), (0, 3), (0, 4), (0, 11), (5, 5), (5, 14), (7, 23), (9, 4)]
)
@pytest.mark.parametrize("longest", [32, 23])
def test_the_numbers_come_in_order_each_once_and_know_their_block(blocks, first, end, longest):
    def step(number, block, carry):
        seen, count = carry
        begin, size = block
        seen = seen.at[count].set(
            jnp.where((begin <= number) & (number < begin + size), number, -2)
        )
        return seen, count + 1

    begin = jnp.full(32, -1, jnp.int32), jnp.int32(0)
    loop = jax.jit(
        lambda first, end: loops.loop_over(
            first, end, lambda at, size: (at, size), step, begin, longest
        )
    )
    seen, count = loop(np.int32(first), np.int32(end))
    expected = list(range(first, end))
    assert count == len(expected)
    np.testing.assert_array_equal(seen[: len(expected)], expected)
    assert np.all(seen[len(expected) :] == -1)


def test_no_block_is_prepared_that_there_never_is(blocks):
    sizes = []

    def sums(longest):
        return loops.loop_over(
            0, 3, lambda _, size: sizes.append(size), lambda at, _, carry: carry + at, 0, longest
        )

    assert [int(sums(3)), set(sizes)] == [3, {1}]
    assert [int(sums(4)), set(sizes)] == [3, {1, 4}]


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(107, 5)), rng.integers(3, size=107)


def trained(inputs=None, watch=None, batch_size=8):
    with jax.enable_x64(True):
        x, t = problem()
        network = Network((5, 4, 3), "tanh")
        params = init(network, jax.random.key(0), dtype=np.float64)
        return fit(
            network, params, x if inputs is None else inputs, t, key=jax.random.key(1), epochs=3,
            batch_size=batch_size, dropout=0.2, watch=watch,
        )  # fmt: skip


def one_by_one(monkeypatch):
    """Undo `blocks` within a test."""
    for module in (loops, batches, epochs, steps):
        monkeypatch.setattr(module, "on_a_gpu", lambda: False)
    jax.clear_caches()


def test_training_in_blocks_is_training_step_by_step(blocks, monkeypatch):
    places, at_once = [], []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers):
            at_once.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(epochs, "ThreadPoolExecutor", Counted)
    monkeypatch.setattr(epochs, "_PIECE_SECONDS", 1e-9)
    in_blocks = trained(watch=lambda snapshot: places.append(snapshot.step))
    # 0 where an epoch is over: the first, of 14 steps, is one piece, as no speed is known yet.
    assert places == [0, 4, 8, 0, 4, 8, 0]
    one_by_one(monkeypatch)
    alone = trained()
    assert at_once == [1, 2]  # programs that are compiled at once
    for ours, theirs in zip(
        jax.tree.leaves(in_blocks.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert in_blocks.history[-1]["train_loss"] == pytest.approx(
        alone.history[-1]["train_loss"], rel=1e-12
    )


@pytest.mark.parametrize("fewer", [True, False])
@pytest.mark.parametrize("how", ["in memory", "stored", "an estimator"])
def test_there_are_blocks_where_there_are_batches_for_one(
    how, fewer, blocks, block_sizes, monkeypatch, tmp_path
):
    """The order of few examples is shorter than a block of a GPU's, which once ended it."""
    x, t = problem()
    np.save(tmp_path / "x.npy", x)

    def run():
        if how == "an estimator":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = MLPClassifier(
                    (4,), batch_size=1000 if fewer else 200, max_iter=3, random_state=0
                )
                return model.fit(np.tile(x, (12, 1)), np.tile(t, 12)).coefs_
        inputs = open_stored(tmp_path / "x.npy") if how == "stored" else None
        batch_size = (64 if how == "stored" else 1024) if fewer else 16
        return jax.tree.leaves(trained(inputs, batch_size=batch_size).params)

    in_blocks = run()
    assert block_sizes == ({1} if fewer else {1, 4})
    one_by_one(monkeypatch)
    for ours, theirs in zip(in_blocks, run(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_targets", [0, 3])
def test_a_batch_has_the_rows_that_the_order_names_and_weight_0_where_it_names_none(n_targets):
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(5, 2)), 1 + rng.random(5)
    targets = rng.normal(size=(5, n_targets)) if n_targets else np.arange(5)
    examples = jax.tree.map(jnp.asarray, Batch(inputs, targets, weights))
    order = np.array([2, 2, 2, 3, 1, -1, 0, 4, -1], np.int32)
    block = batches.block_of(examples, jnp.asarray(order), 1, 2, batch_size=3)
    assert block.examples.inputs is examples.inputs  # lest there be two of them
    assert (block.examples.targets is examples.targets) == bool(n_targets)
    for number in (1, 2):
        rows = order[3 * number : 3 * number + 3]
        batch = batches.epoch_batch(block, number, scaling=None, batch_size=3, dtype=np.float32)
        there = rows >= 0
        np.testing.assert_array_equal(batch.inputs[there], examples.inputs[rows[there]])
        np.testing.assert_array_equal(batch.targets[there], examples.targets[rows[there]])
        np.testing.assert_array_equal(  # any finite row would do
            batch.inputs[~there], np.tile(np.float32(inputs[0]), (np.sum(~there), 1))
        )
        expected = np.where(there, examples.weights[rows], 0)
        np.testing.assert_array_equal(batch.weights, expected)
        counted = batches.epoch_batch(
            block._replace(examples=block.examples._replace(weights=None)),
            number, scaling=None, batch_size=3, dtype=np.float32,
        )  # fmt: skip
        np.testing.assert_array_equal(counted.weights, there)
        np.testing.assert_array_equal(counted.inputs, batch.inputs)


@pytest.mark.parametrize(
    ("stop", "targets"), [(None, "classes"), (5, "classes"), (None, "distributions")]
)
@pytest.mark.parametrize("at_once", [2**20, 0])
def test_rows_gathered_by_one_thread_are_those_gathered_by_several(
    stop, targets, at_once, monkeypatch
):
    if jax.default_backend() == "gpu":
        pytest.skip("threads are a CPU's, and pieces end at multiples of 32")
    # 27 batches of 128 and one of 44.
    rng = np.random.default_rng(0)
    x, t = rng.integers(256, size=(3500, 30)).astype(np.uint8), rng.integers(3, size=3500)
    if targets == "distributions":
        t = rng.dirichlet(np.ones(3), size=3500)
    network = Network((30, 16, 3), "tanh")
    params = init(network, jax.random.key(0))
    weights = np.where(np.arange(3500) % 7 == 0, 0, 1 + np.arange(3500) % 3).astype(np.float32)
    monkeypatch.setattr(batches, "_AT_ONCE", at_once)
    counts, through = [], batches._through

    def counted(spaces, batch):
        counts.append(sum(space is not None for space in spaces))
        return through(spaces, batch)

    monkeypatch.setattr(batches, "_through", counted)

    def run(spread, resume=None, watch=None):
        monkeypatch.setattr(batches, "_SPREAD", spread)
        jax.clear_caches()
        return fit(
            network, params, x, t, sample_weight=weights, key=jax.random.key(1), epochs=2,
            batch_size=128, dropout=0.2, scaling=PIXELS, resume=resume, watch=watch,
        )  # fmt: skip

    kept = []

    def keep(snapshot):
        state, progress = jax.tree.map(jnp.copy, (snapshot.state, snapshot.progress))
        kept.append(snapshot._replace(state=state, progress=progress))

    if stop is None:
        by_one = run(0)
    else:
        monkeypatch.setattr(epochs, "_FIRST_PIECE", stop)
        run(0, watch=keep)
        assert kept[0].step == stop
        by_one = run(0, resume=kept[0])
    flat = 0 if at_once else 2 - (targets == "distributions")
    assert set(counts) == {1 + (targets == "distributions") + flat}
    counts.clear()
    by_several = run(2**30)
    assert set(counts) == {0}
    jax.clear_caches()
    for ours, theirs in zip(
        jax.tree.leaves(by_one.params), jax.tree.leaves(by_several.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    for name in ("train_loss", "train_accuracy"):
        assert [record.get(name) for record in by_one.history] == [
            record.get(name) for record in by_several.history
        ]


@pytest.mark.parametrize("how", ["in memory", "stored", "an estimator"])
def test_classes_gathered_before_the_steps_are_those_gathered_in_them(
    how, block_sizes, monkeypatch, tmp_path
):
    x, t = problem()
    np.save(tmp_path / "x.npy", x)

    def run(most):
        monkeypatch.setattr(batches, "_AT_ONCE", most)
        jax.clear_caches()
        block_sizes.clear()
        if how == "an estimator":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = MLPClassifier((4,), batch_size=16, max_iter=3, random_state=0)
                found = model.fit(x, t, sample_weight=np.arange(107) % 3)
            return found.coefs_, found.loss_curve_
        fitted = trained(open_stored(tmp_path / "x.npy") if how == "stored" else None)
        figures = [(record["train_loss"], record["train_accuracy"]) for record in fitted.history]
        return jax.tree.leaves(fitted.params), figures

    before = run(2**20)
    most = {"in memory": 2048 // 8, "an estimator": 2048 // 16, "stored": 16}[how]  # filled up
    assert jax.default_backend() == "gpu" or max(block_sizes) == most
    within = run(0)
    assert jax.default_backend() == "gpu" or block_sizes == {1}
    jax.clear_caches()
    for ours, theirs in zip(before, within, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def shared_gathers(pays, monkeypatch):
    """How many gathers in the program of the steps XLA gives to several threads."""
    monkeypatch.setattr(batches, "one_thread_pays", lambda *_: pays)
    network, optimizer = Network((64, 16, 3), "tanh"), optax.sgd(0.1)
    params = init(network, jax.random.key(0))
    x, t = np.zeros((4096, 64), np.float32), np.zeros((4096, 3), np.float32)
    x[0], t[0] = 1, 1  # lest they be constants

    def run(params, examples, order):
        def step(number, batch, state):
            return steps.training_step(network, optimizer, state, batch)[0]

        return batches.loop_over_batches(
            network, examples, order, step, steps.TrainingState(params, optimizer.init(params)),
            first=0, end=8, scaling=None, batch_size=32, dtype=np.dtype(np.float32), alone=True,
        )  # fmt: skip

    examples = Batch(x, t, np.ones(4096, np.float32))
    order = np.arange(256, dtype=np.int32)
    text = jax.jit(run).lower(params, examples, order).compile().as_text()
    return len(re.findall(r"gather\S*fusion\S* = .*outer_dimension_partitions\":\[\"", text))


def test_rows_are_gathered_by_one_thread_where_it_pays(monkeypatch):
    if jax.default_backend() != "cpu" or (os.cpu_count() or 1) == 1:
        pytest.skip("which threads gather is asked of XLA on a CPU of several cores")
    assert [shared_gathers(pays, monkeypatch) for pays in (False, True)] == [1, 0]


def test_an_estimator_s_rows_are_gathered_by_one_thread(monkeypatch):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2000, 24)), rng.integers(3, size=2000)  # filled up to 393,216 bytes

    def run(spread):
        monkeypatch.setattr(batches, "_SPREAD", spread)
        given, spaces_of = [], batches._spaces

        def seen(*arguments, **options):
            spaces = spaces_of(*arguments, **options)
            given.append([None if space is None else space.shape for space in spaces])
            return spaces

        with monkeypatch.context() as patch:
            patch.setattr(batches, "_spaces", seen)
            jax.clear_caches()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = MLPClassifier((8,), batch_size=64, max_iter=2, random_state=0).fit(x, t)
            jax.clear_caches()
        return given, model

    bytes_there = 2048 * 24 * 8 + 64 * 24 * 8
    (by_one, ours), (by_several, theirs) = run(bytes_there), run(bytes_there + 1)
    if jax.default_backend() == "gpu":
        assert by_one == by_several == []
    else:
        assert [by_one, by_several] == [[[(65, 24), None]], [[None, None]]]
    for one, other in zip(ours.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_array_equal(one, other)
    assert ours.loss_curve_ == theirs.loss_curve_


def test_only_one_network_on_one_device_gathers_at_once(block_sizes):
    x, t = problem()
    network = Network((5, 4, 3), "tanh")
    jax.clear_caches()
    params = init_members(network, jax.random.split(jax.random.key(0), 3))
    fit_ensemble(network, params, x, t, key=jax.random.key(1), epochs=1, batch_size=8)
    jax.clear_caches()
    assert block_sizes == ({1, 32} if jax.default_backend() == "gpu" else {1})


@pytest.mark.parametrize(
    ("sizes", "batch_size", "expected"),
    [
        ((64, 32, 10), 32, True), ((784, 32, 10), 51, True), ((784, 32, 10), 52, False),
        ((784, 128, 10), 32, False), ((64, 100, 10), 400, True), ((2000, 20, 10), 32, True),
        ((2000, 20, 10), 33, False), ((3072, 16, 10), 32, False), ((1, 8), 2**16 - 9, True),
    ],
)  # fmt: skip
def test_one_thread_pays_where_the_first_product_is_one_s(sizes, batch_size, expected, monkeypatch):
    monkeypatch.setattr(batches, "on_a_gpu", lambda: False)
    assert batches.one_thread_pays(Network(sizes), batch_size) is expected
    monkeypatch.setattr(batches, "on_a_gpu", lambda: True)
    assert batches.one_thread_pays(Network(sizes), batch_size) is False


@pytest.mark.parametrize(
    ("n_examples", "batch_size", "n_targets", "flat", "expected"),
    [
        (2**15 - 32, 32, 0, False, [True, False, False]),  # bytes, of rows as float32
        (2**15 - 33 - 32 * 3, 32, 0, False, [False, False, False]),
        (2**16, 1, 0, True, [False, False, False]), (2**17, 2, 0, False, [True, False, False]),
        (2**17, 2, 0, True, [True, True, True]), (2**17, 2, 1, False, [True, True, False]),
        (2**16, 32, 1, False, [True, False, False]), (2**16, 32, 2, True, [True, True, False]),
        (0, 32, 2, True, [False, False, False]),
        (2**11, 32, 2047, True, [False, True, False]),
        (2**11, 32, 2048, True, [False, False, False]),  # much to gather
    ],
)  # fmt: skip
def test_there_is_space_for_rows_out_of_much_data(
    n_examples, batch_size, n_targets, flat, expected
):
    inputs = np.zeros((n_examples, 16), np.uint8)
    targets = np.zeros((n_examples, n_targets) if n_targets else n_examples, np.float32)
    examples = Batch(inputs, targets, np.zeros(n_examples, np.float32))
    spaces = batches._spaces(examples, batch_size, np.dtype(np.float32), flat=flat)
    assert [space is not None for space in spaces] == expected
    for space, array in zip(spaces, examples, strict=True):
        if space is not None:
            assert space.shape == (batch_size + 1, *array.shape[1:])
            assert space.dtype == array.dtype


@pytest.mark.parametrize(
    ("sizes", "batch_size", "dtype", "expected"),
    [
        ((64, 32, 10), 32, np.float32, True), ((64, 32, 10), 31, np.float32, False),
        ((1024, 32, 10), 32, np.float64, True), ((1025, 8, 10), 255, np.float64, False),
        ((784, 42, 10), 32, np.float32, False), ((20, 32), 32, np.float32, True),
        ((64, 512, 32, 10), 32, np.float32, True), ((64, 512, 33, 10), 32, np.float32, False),
        ((20, 256, 256, 10), 128, np.float32, False), ((784, 1024, 10), 256, np.float32, True),
        ((64, 32, 33), 256, np.float32, False), ((64, 32, 10), 256, np.float16, False),
        ((64, 32, 10), 255, np.float32, True),
    ],
)  # fmt: skip
def test_columns_pay_for_small_networks_and_large_batches(
    sizes, batch_size, dtype, expected, monkeypatch
):
    dtype = np.dtype(dtype)
    monkeypatch.setattr(batches, "on_a_gpu", lambda: False)
    assert batches.columns_pay(Network(sizes), batch_size, dtype, False) is expected
    masked = batches.columns_pay(Network(sizes), batch_size, dtype, True)
    assert masked is (expected and batch_size < 256)
    monkeypatch.setattr(batches, "on_a_gpu", lambda: True)
    on_gpu = (batches.columns_pay(Network(sizes), size, dtype, False) for size in (1023, 1024))
    assert list(on_gpu) == [False, sizes[-1] <= 32 and dtype != np.float16]
    assert batches.columns_pay(Network(sizes), 1024, dtype, True) is False


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((784, 32, 10), True), ((784, 512, 512, 10), True), ((784, 512, 514, 10), False),
        ((128, 128, 10), False), ((129, 128, 10), True), ((784, 10), False),
    ],
)  # fmt: skip
def test_late_gradients_pay_for_wide_inputs_where_no_other_layer_is_large(
    sizes, expected, monkeypatch
):
    monkeypatch.setattr(batches, "on_a_gpu", lambda: False)
    assert batches.late_gradients_pay(Network(sizes)) is expected
    monkeypatch.setattr(batches, "on_a_gpu", lambda: True)
    assert batches.late_gradients_pay(Network(sizes)) is False


def copies_of_weights(late):
    network, optimizer = Network((40, 24, 20, 3), "relu"), optax.sgd(0.1)
    params = init(network, jax.random.key(0))
    state = steps.TrainingState(params, optimizer.init(params))

    def run(state, x, t):
        def step(_, state):
            return steps.training_step(network, optimizer, state, Batch(x, t, None), late=late)[0]

        return jax.lax.fori_loop(0, 9, step, state)

    x, t = np.ones((16, 40), np.float32), np.zeros(16, np.int32)
    program = jax.jit(run, donate_argnums=0).lower(state, x, t).compile().as_text()
    return len(re.findall(r"= f32\[20,24\]\S* copy\(", program))


def test_late_gradients_spare_the_copy_of_the_weights():
    if jax.default_backend() != "cpu":
        pytest.skip("what is copied is asked of XLA on a CPU")
    assert [copies_of_weights(late) for late in (False, True)] == [1, 0]


def test_training_with_late_gradients_is_training(monkeypatch):
    def run(late):
        monkeypatch.setattr(steps, "late_gradients_pay", lambda _: late)
        jax.clear_caches()
        return jax.tree.leaves(trained().params)

    late, plain = run(True), run(False)
    jax.clear_caches()
    for one, other in zip(late, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


def test_late_gradients_are_one_network_s_on_one_device_without_privacy(monkeypatch):
    taken = []
    step = steps.training_step

    def watched(*arguments, late, **options):
        taken.append(late)
        return step(*arguments, late=late, **options)

    monkeypatch.setattr(steps, "training_step", watched)
    monkeypatch.setattr(steps, "late_gradients_pay", lambda _: True)
    x, t = problem()
    network = Network((5, 4, 3))
    params = init(network, jax.random.key(0))
    private: dict[str, Any] = {"noise_multiplier": 4.0, "clip_norm": 1.0, "delta": 1e-3}
    ways: list[dict[str, Any]] = [{}, {"devices": jax.devices()[:1]}, private]
    for own in ways:
        jax.clear_caches()
        fit(network, params, x, t, key=jax.random.key(1), epochs=1, batch_size=32, **own)
    assert taken == [True, False, False]
    members = init_members(network, jax.random.split(jax.random.key(0), 2))
    fit_ensemble(network, members, x, t, key=jax.random.key(1), epochs=1)
    assert taken == [True, False, False, False]
    jax.clear_caches()


@pytest.mark.parametrize(
    "how", ["private", "sharded", "alone", "a private estimator", "an estimator"]
)
def test_private_and_sharded_steps_go_by_rows(how, monkeypatch):
    asked = []
    monkeypatch.setattr(regularization, "columns_pay", lambda *_: asked.append(how) or False)
    jax.clear_caches()
    x, t = np.random.default_rng(0).normal(size=(64, 5)), np.arange(64) % 3
    private: dict[str, Any] = {"noise_multiplier": 4.0, "clip_norm": 1.0, "delta": 1e-3}
    if how.endswith("estimator"):
        own = private if "private" in how else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            MLPClassifier((4,), batch_size=32, max_iter=1, **own).fit(x, t)
    else:
        options = {"private": private, "sharded": {"devices": jax.devices()[:1]}, "alone": {}}[how]
        network = Network((5, 4, 3))
        params = init(network, jax.random.key(0))
        fit(network, params, x, t, key=jax.random.key(1), epochs=1, batch_size=32, **options)
    jax.clear_caches()
    assert bool(asked) == (how in ("alone", "an estimator"))


def test_columns_whose_gradients_wait_are_rows_too(monkeypatch):
    network, float64 = Network((520, 32, 3), "tanh"), np.dtype(np.float64)
    if jax.default_backend() == "cpu":
        assert batches.columns_pay(network, 32, float64, False)
        assert batches.late_gradients_pay(network)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(71, 520)), rng.integers(3, size=71)

    def run():
        jax.clear_caches()
        with jax.enable_x64(True):
            params = init(network, jax.random.key(0), dtype=float64)
            return fit(network, params, x, t, key=jax.random.key(1), epochs=2, batch_size=32)

    by_columns = run()
    monkeypatch.setattr(regularization, "columns_pay", lambda *_: False)
    monkeypatch.setattr(steps, "late_gradients_pay", lambda *_: False)
    by_rows = run()
    jax.clear_caches()
    for ours, theirs in zip(
        jax.tree.leaves(by_columns.params), jax.tree.leaves(by_rows.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("columns", "n_examples", "expected"),
    [
        (True, 128, False),
        (True, 129, True),
        (False, 129, False),
        (True, 511, True),
        (True, 512, False),
    ],
)
def test_a_sum_that_threads_would_share_is_a_product(columns, n_examples, expected):
    deltas = np.random.default_rng(0).normal(size=(n_examples, 128))  # 2¹⁷ bytes, and more
    with jax.enable_x64(True):
        program = jax.make_jaxpr(lambda deltas: batch._sum_of(deltas, columns))(deltas)
        sums = batch._sum_of(jnp.asarray(deltas), columns)
    assert ("dot_general" in str(program)) is expected
    np.testing.assert_allclose(sums, deltas.sum(axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "targets", "shared"),
    [
        ("softmax_cross_entropy", "classes", 2**17), ("softmax_cross_entropy", "classes", 0),
        ("softmax_cross_entropy", "distributions", 2**17),
        ("sigmoid_binary_cross_entropy", "bits", 2**17), ("squared_error", "numbers", 2**17),
        ("poisson", "counts", 0),
    ],
)  # fmt: skip
def test_training_by_columns_is_training_by_rows(loss, targets, shared, monkeypatch):
    monkeypatch.setattr(batch, "_SHARED", shared)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(107, 5))
    t = {
        "classes": rng.integers(3, size=107),
        "distributions": rng.dirichlet(np.ones(3), size=107),
        "bits": rng.random((107, 3)),
        "numbers": rng.normal(size=(107, 3)),
        "counts": rng.poisson(2.0, size=(107, 3)).astype(float),
    }[targets]
    smoothing = 0.1 if "entropy" in loss else 0.0
    network = Network((5, 4, 6, 3), "tanh", loss)
    asked, taken = [], []

    def passed(*arguments, columns, **more):
        taken.append(columns)
        return pass_batch(*arguments, columns=columns, **more)

    monkeypatch.setattr(regularization, "pass_batch", passed)

    def run(answer):
        monkeypatch.setattr(
            regularization, "columns_pay", lambda *_: asked.append(answer) or answer
        )
        jax.clear_caches()
        with jax.enable_x64(True):
            params = init(network, jax.random.key(0), dtype=np.float64)
            return fit(
                network, params, x, t, key=jax.random.key(1), epochs=3, batch_size=8, dropout=0.2,
                sample_weight=np.arange(107) % 3, label_smoothing=smoothing,
            )  # fmt: skip

    by_columns, by_rows = run(True), run(False)
    jax.clear_caches()
    # The steps, and the figures of a gradient.
    assert asked == taken == [True, True, False, False]
    for ours, theirs in zip(
        jax.tree.leaves(by_columns.params), jax.tree.leaves(by_rows.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    for ours, theirs in zip(by_columns.history, by_rows.history, strict=True):
        for name in ("train_loss", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-12)
        assert ours.get("train_accuracy") == theirs.get("train_accuracy")
