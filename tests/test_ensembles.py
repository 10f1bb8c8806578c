"""Ensembles: every member against the same network trained alone; who stops, and who diverges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, compilations, distance

from jaxmlp import Network, fit, fit_ensemble, init, init_members, member
from jaxmlp.evaluation import Sums
from jaxmlp.training import memory, passes
from jaxmlp.training.mapped import run_members
from jaxmlp.training.members import network_of_widths
from jaxmlp.training.memory import members_that_fit
from jaxmlp.training.passes import is_power
from jaxmlp.training.records import columns_of, record_of

pytestmark = [
    pytest.mark.slow,  # on the default Python alone: compiling takes most of it
    pytest.mark.usefixtures("keys_used_once"),
]

# As for a training against a plain loop: twenty to sixty steps of gradients that agree to 1e-15.
FLOAT64_STEPS = 1e-12
FLOAT32 = 5e-6

NETWORK = Network((4, 5, 3), "tanh", precision="highest")
DEEP = Network((4, 6, 5, 3), ("sigmoid", "relu"))


def problem(n_examples=30):
    """Inputs and classes that a linear map decides; NumPy float64."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n_examples, 4))
    return x, np.argmax(x @ rng.normal(size=(4, 3)), axis=1)


X, T = problem()
EVALUATION = {"validation": problem(20)}
SHARED = {"batch_size": 8, "epochs": 3, "evaluation": EVALUATION}
NUMBERS = {
    "everything": {
        "optimizer": "adamw",
        "optimizer_settings": {"b1": [0.9, 0.8, 0.5, 0.9, 0.7]},
        "learning_rate": [0.01, 0.02, 0.03, 0.001, 0.1],
        "warmup": [0.0, 0.2, 0.5, 0.0, 0.3],
        "weight_decay": [0.0, 0.1, 0.01, 1e-3, 0.0],
        "clip_norm": [1.0, 0.1, 2.0, 0.5, 10.0],
        "max_norm": [1.0, 2.0, 0.7, 0.9, 3.0],
        "dropout": [0.0, 0.1, 0.5, 0.3, 0.2],
        "input_dropout": [0.0, 0.2, 0.1, 0.0, 0.0],
        "label_smoothing": [0.0, 0.1, 0.2, 0.0, 0.3],
        "average_decay": [0.9, 0.99, 0.5, 0.7, 0.9],
        "schedule": "cosine",
    },
    "momentum": {
        "optimizer": "momentum",
        "optimizer_settings": {"momentum": [0.9, 0.0, 0.5, 0.99, 0.7]},
        "learning_rate": [0.1, 0.2, 0.3, 0.01, 0.5],
    },
    "one number": {"optimizer": "adam", "learning_rate": 0.01},
}


def own(settings, m):
    """The settings of member m as `fit` takes them."""

    def pick(value):
        return value[m] if isinstance(value, list) else value

    result = {name: pick(value) for name, value in settings.items()}
    if "optimizer_settings" in settings:
        numbers = settings["optimizer_settings"].items()
        result["optimizer_settings"] = {name: pick(value) for name, value in numbers}
    return result


def alone(network, params, m, settings, key, **changes):
    """Member m of some parameters, trained alone."""
    one = jax.tree.map(lambda leaf: leaf[m], params)
    key = key if key.ndim == 0 else jax.random.clone(key)[m]
    return fit(network, one, X, T, key=key, **(SHARED | own(settings, m) | changes))


@pytest.mark.parametrize("own_order", [False, True], ids=["shared order", "own order"])
@pytest.mark.parametrize("kind", ["everything", "momentum", "one number"])
@pytest.mark.parametrize("per_pass", [2, 5])
def test_a_member_is_the_network_trained_alone(kind, own_order, per_pass):
    settings = NUMBERS[kind]
    with jax.enable_x64(True):
        params = init_members(
            NETWORK, jax.random.split(jax.random.key(0), 5), jnp.float64, scale=[1, 2, 0.5, 1, 1]
        )
        key = jax.random.key(1)
        key = jax.random.split(key, 5) if own_order else key
        got = fit_ensemble(
            NETWORK, params, X, T, key=key, members_per_pass=per_pass, **SHARED, **settings
        )
        assert got.members_per_pass == per_pass
        for m in range(5):
            expected = alone(NETWORK, params, m, settings, key)
            found = jax.tree.map(lambda leaf, m=m: leaf[m], got.params)
            assert_close(found, expected.params, FLOAT64_STEPS)
            assert got.best_epochs[m] == expected.best_epoch == len(got.histories[m])
            for record, theirs in zip(got.histories[m], expected.history, strict=True):
                assert set(record) <= set(theirs)
                for name in set(record) - {"seconds", "examples_per_second", "compile_seconds"}:
                    assert distance(record[name], theirs[name]) <= FLOAT64_STEPS, name


def test_a_member_is_the_network_trained_alone_in_float32():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 5))
    key, settings = jax.random.key(1), NUMBERS["momentum"]
    got = fit_ensemble(NETWORK, params, X, T, key=key, **SHARED, **settings)
    for m in range(5):
        expected = alone(NETWORK, params, m, settings, key)
        assert_close(jax.tree.map(lambda leaf, m=m: leaf[m], got.params), expected.params, FLOAT32)


def test_members_start_as_networks_of_their_own():
    keys = jax.random.split(jax.random.key(3), 4)
    params = init_members(DEEP, keys, scale=[1, 2, 1, 0.5])
    for m, scale in enumerate((1, 2, 1, 0.5)):
        for mine, theirs in zip(member(DEEP, params, m)[1], init(DEEP, keys[m]), strict=True):
            np.testing.assert_array_equal(mine.weight, scale * theirs.weight)
            np.testing.assert_array_equal(mine.bias, theirs.bias)


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_a_narrower_member_is_the_narrower_network(optimizer):
    widths = np.array([[6, 5], [3, 2], [1, 5], [3, 2]])
    settings = {"optimizer": optimizer, "learning_rate": 0.05, "weight_decay": 0.01}
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        params = init_members(DEEP, keys, jnp.float64, widths=widths)
        key = jax.random.key(1)
        got = fit_ensemble(DEEP, params, X, T, key=key, widths=widths, **SHARED, **settings)
        for m, row in enumerate(widths.tolist()):
            network = network_of_widths(DEEP, row)
            first = init(network, keys[m], jnp.float64)
            expected = fit(network, first, X, T, key=key, **SHARED, **settings)
            narrow, found = member(DEEP, got.params, m, widths)
            assert narrow == network
            assert_close(found, expected.params, FLOAT64_STEPS)
            last = got.histories[m][-1]["validation_loss"]
            assert distance(last, expected.history[-1]["validation_loss"]) <= FLOAT64_STEPS
    (first, second, _), (h, k) = got.params, widths[1]
    assert np.all(np.asarray(first.weight)[1, h:] == 0)
    assert np.all(np.asarray(second.weight)[1, k:] == 0)
    assert np.all(np.asarray(second.weight)[1, :, h:] == 0)


@pytest.mark.parametrize("per_pass", [3, 5])
@pytest.mark.parametrize("closing", [False, True])
def test_a_member_stops_when_its_own_patience_runs_out(closing, per_pass, monkeypatch):
    """Also where those left go on in a smaller program."""
    compiled = passes.Pass._compile
    seconds = 0.0 if closing else np.inf
    monkeypatch.setattr(passes.Pass, "_compile", lambda self: compiled(self) * 0 + seconds)
    sizes = []
    settled = passes.Pass._settle

    def settle(self):
        settled(self)
        sizes.append(len(self.ids))

    monkeypatch.setattr(passes.Pass, "_settle", settle)
    rates = [1e-9, 0.5, 0.02, 1.0, 0.05]
    settings = {
        "optimizer": "sgd", "learning_rate": rates, "patience": 2, "epochs": 25,
        "monitor": "validation_accuracy",
    }  # fmt: skip
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(7), 5)
        params = init_members(NETWORK, keys, jnp.float64)
        got = fit_ensemble(
            NETWORK, params, X, T, key=keys, members_per_pass=per_pass, **(SHARED | settings)
        )
        for m in range(5):
            expected = alone(NETWORK, params, m, settings, keys)
            found = jax.tree.map(lambda leaf, m=m: leaf[m], got.params)
            assert_close(found, expected.params, FLOAT64_STEPS)
            assert got.best_epochs[m] == expected.best_epoch
            assert len(got.histories[m]) == len(expected.history)
    lengths = [len(history) for history in got.histories]
    assert min(lengths) == 3 < max(lengths)  # or it would show nothing
    assert (min(sizes) < per_pass) == closing


def test_a_member_that_diverges_stops_alone():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 3))
    key = jax.random.key(1)
    settings = {"optimizer": "sgd", "learning_rate": [0.1, 3e38, 0.1]}
    got = fit_ensemble(NETWORK, params, X, T, key=key, **SHARED, **settings)
    assert list(got.diverged) == [1]
    assert "training diverged" in got.diverged[1]
    assert "in epoch 1 of 3" in got.diverged[1]
    assert [len(history) for history in got.histories] == [3, 0, 3]
    for leaf in jax.tree.leaves(got.params):
        assert np.isnan(leaf[1]).all()
    for m in (0, 2):
        expected = alone(NETWORK, params, m, settings, key)
        assert_close(jax.tree.map(lambda leaf, m=m: leaf[m], got.params), expected.params, FLOAT32)


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_accuracy"])
def test_halving_keeps_the_best(monitor):
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 8))
    rates = np.geomspace(1e-4, 1, 8)
    got = fit_ensemble(
        NETWORK, params, X, T, key=jax.random.key(1), learning_rate=rates, halving=2,
        monitor=monitor, **(SHARED | {"epochs": 5}),
    )  # fmt: skip
    lengths = np.array([len(history) for history in got.histories])
    assert sorted(lengths.tolist()) == [1, 1, 1, 1, 2, 2, 4, 5]
    sign = -1 if monitor == "validation_accuracy" else 1
    for epoch in (1, 2, 4):
        there = np.flatnonzero(lengths >= epoch)
        values = {m: sign * got.histories[m][epoch - 1][monitor] for m in there}
        kept = [values[m] for m in there if lengths[m] > epoch]
        assert max(kept) <= min(values[m] for m in there if lengths[m] == epoch)
    for m in (int(lengths.argmin()), int(lengths.argmax())):
        expected = fit(
            NETWORK, jax.tree.map(lambda leaf, m=m: leaf[m], params), X, T, key=jax.random.key(1),
            learning_rate=rates[m], **(SHARED | {"epochs": int(lengths[m])}),
        )  # fmt: skip
        assert_close(jax.tree.map(lambda leaf, m=m: leaf[m], got.params), expected.params, FLOAT32)


def test_a_group_that_does_not_divide_the_members_is_named():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 4))
    for group in (3, 8):
        with pytest.raises(
            ValueError, match=rf"^group: expected a number that divides the 4 mem.*{group}"
        ):
            fit_ensemble(NETWORK, params, X, T, key=jax.random.key(1), group=group)


def test_members_of_a_group_go_on_or_stop_together():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 8))
    # Of each pair one learns and one hardly does, but for a pair that both learn a little.
    rates = [1.0, 1e-5, 0.1, 0.1, 0.5, 1e-5, 0.3, 1e-5]
    got = fit_ensemble(
        NETWORK, params, X, T, key=jax.random.key(1), learning_rate=rates, halving=2, group=2,
        optimizer="sgd", **SHARED,
    )  # fmt: skip
    lengths = [len(history) for history in got.histories]
    assert lengths[::2] == lengths[1::2]
    assert sorted(lengths) == [1, 1, 1, 1, 2, 2, 3, 3]
    first = np.array([history[0]["validation_loss"] for history in got.histories])
    means = first.reshape(4, 2).mean(axis=1)
    assert {int(g) for g in np.argsort(means)[:2]} == {g for g in range(4) if lengths[2 * g] > 1}


def test_powers():
    assert [n for n in range(1, 30) if is_power(n, 3)] == [1, 3, 9, 27]


def test_other_numbers_compile_nothing():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 3))

    def train(seed, **settings):
        settings = {"learning_rate": [0.1, 0.2, 0.3], "weight_decay": 0.1} | SHARED | settings
        fit_ensemble(NETWORK, params, X, T, key=jax.random.key(seed), **settings)

    train(0)
    with compilations() as events:
        train(1, learning_rate=0.5, weight_decay=[0, 0.1, 0.2], epochs=2, schedule="cosine")
        train(2, learning_rate=[1e-3, 2e-3, 1.0])
    assert not events


def test_who_watches_sees_the_members_and_the_epochs():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 3))
    seen = []
    fit_ensemble(
        NETWORK, params, X, T, key=jax.random.key(1), members_per_pass=2, watch=seen.append,
        **(SHARED | {"epochs": 2}),
    )  # fmt: skip
    assert [tuple(progress) for progress in seen] == [
        (0, 3, 1, 2), (0, 3, 2, 2), (2, 3, 1, 1), (2, 3, 2, 1),
    ]  # fmt: skip


def test_weights_and_half_precision():
    weights = np.linspace(0, 1, len(X))
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 2), jnp.bfloat16)
    settings = {"learning_rate": [0.01, 0.05], "sample_weight": weights}
    got = fit_ensemble(NETWORK, params, X, T, key=jax.random.key(1), **SHARED, **settings)
    for m in range(2):
        expected = alone(NETWORK, params, m, settings, jax.random.key(1))
        for mine, theirs in zip(
            jax.tree.leaves(got.params), jax.tree.leaves(expected.params), strict=True
        ):
            assert mine.dtype == theirs.dtype == jnp.bfloat16
            assert distance(mine[m], theirs) < 2e-2  # two or three roundings of 8 bits


BAD = {
    "a single network": ({"params": init(NETWORK, jax.random.key(0))}, "leading axis"),
    "no members": (
        {"params": jax.tree.map(lambda x: x[:0], init_members(NETWORK, jax.random.split(
            jax.random.key(0), 2)))},
        "at least one member",
    ),
    "keys": ({"key": jax.random.split(jax.random.key(0), 2)}, r"an array of shape \(3,\), got"),
    "no key": ({"key": 0}, "typed key"),
    "rates": ({"learning_rate": [0.1, 0.2]}, "learning_rate: expected one number or 3"),
    "a bad rate": ({"learning_rate": [0.1, 0.2, -1]}, "learning_rate.*member 2"),
    "words": ({"learning_rate": "fast"}, "learning_rate: expected an array of numbers"),
    "dropout": ({"dropout": [0.1, 0.2]}, "dropout: expected one rate"),
    "too much dropout": ({"dropout": [0.1, 0.2, 1.5]}, "dropout"),
    "widths": ({"widths": [[1], [2], [6]]}, r"widths: expected 1 to \[5\] units"),
    "broken widths": ({"widths": [[1.5], [2], [3]]}, "widths: expected integers"),
    "shape of widths": ({"widths": [1, 2, 3]}, r"widths: expected shape \(3, 1\)"),
    "halving and patience": ({"halving": 2, "patience": 2}, "patience: expected none beside"),
    "dropout of no layer": (
        {"network": Network((4, 3)), "dropout": [0.0, 2.0, -7.0],
         "params": init_members(Network((4, 3)), jax.random.split(jax.random.key(0), 3))},
        "dropout: expected none for a network without a hidden layer",
    ),
    "no eps": (
        {"widths": [[5], [5], [5]], "optimizer_settings": {"eps": 0.0}},
        "expected eps above 0 beside widths",
    ),
    "wide params": ({"widths": [[5], [2], [5]]}, "expected zeros beyond the 2 units of hidden"),
    "halving": ({"halving": 1}, "halving: expected a factor of at least 2"),
    "halving by nothing": ({"halving": 2, "evaluation": None}, "monitor: expected a figure"),
    "members per pass": ({"members_per_pass": 0}, "members_per_pass"),
    "an optimizer": ({"optimizer": "adm"}, "did you mean 'adam'"),
    "a setting": ({"optimizer_settings": {"b7": 1}}, "optimizer_settings.*'b7'"),
    "no settings": ({"optimizer_settings": [1]}, "optimizer_settings: expected name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind):
    changes, message = BAD[kind]
    arguments = {
        "network": NETWORK,
        "params": init_members(NETWORK, jax.random.split(jax.random.key(0), 3)),
        "key": jax.random.key(1),
        **SHARED,
        **changes,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        fit_ensemble(inputs=X, targets=T, **arguments)


def test_there_is_no_other_member():
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 3))
    for m in (3, -1):
        with pytest.raises(ValueError, match=f"m: expected a member from 0 to 2, got {m}"):
            member(NETWORK, params, m)
    with pytest.raises(TypeError, match="m: expected the number of a member, got 1.5"):
        member(NETWORK, params, 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": jax.random.key(0)}, "one for each member"),
        ({"keys": [0, 1]}, "typed keys"),
        ({"scale": [1, 2, 3]}, "scale: expected one number or 2"),
        ({"scale": [1, -1]}, "scale: expected finite numbers above 0"),
        ({"widths": [[1], [0]]}, "widths: expected 1 to"),
    ],
)
def test_bad_input_of_the_first_parameters(changes, message):
    arguments = {"keys": jax.random.split(jax.random.key(0), 2), **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        init_members(NETWORK, **arguments)


def test_passes_of_about_equal_size():
    assert members_that_fit(10, 100, None) == 10
    assert members_that_fit(10, 60, 400) == 4  # 4, 4, 2
    assert members_that_fit(9, 60, 400) == 3
    assert members_that_fit(4, 60, 400) == 4
    with pytest.raises(MemoryError, match="1 MB for a member, got 0 MB"):
        members_that_fit(4, 10**6, 10**5)


def test_free_memory_is_the_least_of_the_machine_s_and_its_groups(tmp_path, monkeypatch):
    machine, groups = tmp_path / "meminfo", tmp_path / "cgroup"
    machine.write_text("MemTotal: 99 kB\nMemAvailable:   50 kB\n")
    for name, value in {"_MEMORY": machine, "_GROUPS": groups, "_FOLDER": tmp_path}.items():
        monkeypatch.setattr(memory, name, value)
    cpu = jax.devices("cpu")[0]

    def free(lines, folder, names, most, used, kept):
        groups.write_text(lines)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (most, used, f"anon 5\n{kept}"), strict=True):
            (tmp_path / folder / name).write_text(f"{value}\n")
        return memory.free_bytes(cpu)

    assert memory.free_bytes(cpu) == 50 * 1024  # no groups
    new = ("memory.max", "memory.current", "memory.stat")
    assert free("0::/a/b\n", "a/b", new, "max", 7, "inactive_file 0") == 50 * 1024
    assert free("0::/a/b\n", "a/b", new, 1007, 7, "inactive_file 0") == 1000
    # What the group's files keep in memory can be had back.
    assert free("0::/a/b\n", "a/b", new, 1007, 907, "inactive_file 800") == 900
    assert free("0::/a/b\n", "a", new, 1000, 600, "inactive_file 0") == 400  # one above
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    lines = "3:cpu,cpuacct:/\n4:memory:/c\n"
    assert free(lines, "memory/c", old, 2**62, 6, "total_inactive_file 0") == 50 * 1024
    assert free(lines, "memory/c", old, 306, 6, "total_inactive_file 0") == 300


@pytest.mark.parametrize(
    ("sizes", "batch_size", "evaluated"),
    [((64, 32, 10), 128, False), ((64, 256, 10), 32, True), ((10, 512, 2), 8, True)],
)
def test_the_memory_that_is_planned_is_what_xla_takes(sizes, batch_size, evaluated, monkeypatch):
    """Beside the state and its copies, which are counted: XLA's own analysis of both programs."""
    network, count = Network(sizes), 16
    planned, taken = [], []
    monkeypatch.setattr(
        passes, "members_that_fit", lambda members, each, free: planned.append(each) or members
    )

    def analysed(name):
        program = getattr(passes, name)

        def run(*arguments, **options):
            analysis = program.lower(*arguments, **options).compile().memory_analysis()
            taken.append(analysis.temp_size_in_bytes / count)
            return program(*arguments, **options)

        monkeypatch.setattr(passes, name, run)

    analysed("run_members")
    analysed("members_sums")
    rng = np.random.default_rng(0)
    params = init_members(network, jax.random.split(jax.random.key(0), count))
    x, t = rng.normal(size=(256, sizes[0])), rng.integers(sizes[-1], size=256)
    fit_ensemble(
        network, params, x, t, key=jax.random.key(1), batch_size=batch_size, epochs=1,
        evaluation={"validation": (x, t)} if evaluated else None, optimizer="sgd",
    )  # fmt: skip
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / count
    # Parameters, gradient and update, the initial, kept, returned ones and a copy.
    temporaries = planned[0] - 7 * state
    # XLA's temporaries hold the gradient and the update, too.
    share = max(taken) / (temporaries + 2 * state)
    assert share <= 1.1
    if jax.default_backend() == "cpu":  # a GPU's programs share more of it: 0.4 to 0.5
        assert share > 0.5


def test_the_members_steps_lower_for_cuda(monkeypatch):
    exported = []

    def export(*arguments, **options):
        program = jax.export.export(run_members, platforms=["cuda"])
        exported.append(program(*arguments, **options).mlir_module())
        return run_members(*arguments, **options)

    monkeypatch.setattr(passes, "run_members", export)
    params = init_members(NETWORK, jax.random.split(jax.random.key(0), 2))
    settings = NUMBERS["everything"] | {"optimizer": "adam"}
    settings = {name: value[:2] if isinstance(value, list) else value
                for name, value in settings.items() if name != "optimizer_settings"}  # fmt: skip
    fit_ensemble(NETWORK, params, X, T, key=jax.random.key(1), **SHARED, **settings)
    assert "stablehlo.while" in exported[0]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "squared_error"])
def test_the_figures_of_all_members_are_those_of_each(loss):
    network = Network((4, 3), loss=loss)
    rng = np.random.default_rng(0)
    whole = {name: Sums(*rng.random((3, 5)).astype(np.float32)) for name in ("train", "validation")}
    whole["train"].weight[1] = whole["train"].loss[1] = whole["train"].right[1] = 0
    whole["validation"].loss[2:4] = np.inf, np.nan
    columns = columns_of(network, whole)
    for m in range(5):
        figures = {
            name: Sums(*(part[m] for part in sums)).metrics(network) for name, sums in whole.items()
        }
        expected = record_of(7, figures)
        np.testing.assert_equal({"epoch": 7, **{n: c[m] for n, c in columns.items()}}, expected)
        assert list(columns) == list(expected)[1:]
