"""The benchmark suite: that it runs, compares before it times, and keeps what it finds."""

import functools
import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import machine, processes, report, rows, training
from benchmarks.libraries import jax_grad, ours, trainer
from benchmarks.problems import Case, expected, problem

pytestmark = pytest.mark.slow  # on the default Python alone: processes that compile

CASE = Case((784, 16, 10), 8, 3, 100)


@pytest.fixture(autouse=True)
def this_process_alone(monkeypatch):
    """Keep what the command does to its process from this one, and our settings from it."""
    monkeypatch.setattr(command, "pin", lambda: None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        yield


@pytest.mark.parametrize("suite", command.SUITES)
def test_every_suite_runs_quickly(suite, capsys):
    command.main(["--suite", suite, "--quick", "--check"])
    printed = capsys.readouterr().out
    assert "jaxmlp" in printed and "DIFFERENT" not in printed and f"{suite}: " in printed


def test_all_libraries_that_are_here_train_the_same_network():
    own = problem(CASE)
    before = [array for pair in zip(own.weights, own.biases, strict=True) for array in pair]
    for who in (training.OURS, training.OURS_TOO, training.IDENTICAL, "scikit-learn"):
        library = trainer(who, own, "cpu")
        library.run()
        for start, change, array in zip(
            before, expected(own, "training"), library.params(), strict=True
        ):
            largest = np.max(np.abs(change))
            assert largest > 1e-7
            np.testing.assert_allclose(array - start, change, rtol=0, atol=1e-2 * largest)
    slope = expected(own, "gradient")
    for who in ("jaxmlp", "jax.grad"):
        for one, other in zip(trainer(who, own, "cpu", "gradient").params(), slope, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.max(np.abs(other)))


def test_no_library_pays_for_the_import_of_ours():
    code = "import sys, benchmarks.libraries.{0}; print('jaxmlp' in sys.modules)"
    for module in {name for name, _ in training.LIBRARIES.values()} - {"ours"}:
        result = subprocess.run(
            [sys.executable, "-c", code.format(module)], cwd=processes.ROOT, capture_output=True,
            text=True,
        )  # fmt: skip
        missing = "No module named" in result.stderr and "named 'benchmarks" not in result.stderr
        assert result.stdout == "False\n" or missing
        assert module != "jax_grad" or not missing


def test_the_gradient_that_judges_is_the_slope_of_the_loss():
    own = problem(CASE)
    weights = [array.astype(np.float64) for array in own.weights]
    biases = [array.astype(np.float64) for array in own.biases]
    x, classes = own.pixels[own.order[0]] / 255, own.classes[own.order[0]]

    def loss():
        hidden = np.maximum(x @ weights[0].T + biases[0], 0)
        z = hidden @ weights[1].T + biases[1]
        return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(x)), classes])

    slopes = expected(own, "gradient")
    for array, slope in ((weights[0], slopes[0]), (biases[0], slopes[1]), (weights[1], slopes[2])):
        place = np.unravel_index(np.argmax(np.abs(slope)), slope.shape)
        losses = []
        for step in (1e-6, -2e-6):
            array[place] += step
            losses.append(loss())
        array[place] += 1e-6
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-6, slope[place], rtol=1e-5)


@pytest.mark.parametrize("wrong", [1.1, np.nan])
def test_a_library_that_differs_is_not_timed(monkeypatch, wrong):
    class Wrong(training.Worked):
        def build(self, case, folder):
            for number, who in enumerate(self.workers):
                self.compiling[who], self.versions[who] = None, ""
                own = problem(case)
                pairs = zip(own.weights, own.biases, strict=True)
                before = [array for pair in pairs for array in pair]
                changes = expected(own, "training")
                moved = [old + new for old, new in zip(before, changes, strict=True)]
                if number:  # in the last array alone
                    moved[-1] = before[-1] + wrong * changes[-1]
                np.savez(folder / f"{number}.npz", *moved)
            return super().build(case, folder)

    worked = Wrong("cpu", [], quick=True)
    workers: dict = {who: Answering() for who in (training.OURS, training.IDENTICAL)}
    worked.workers = workers
    shown = []
    monkeypatch.setattr(training, "Worked", lambda *_, **__: worked)
    monkeypatch.setattr(training, "Limits", lambda _: Answering())
    training.run("small", "cpu", True, shown.extend)
    notes = {row.who: row.note for row in shown if row.note}
    assert notes[training.IDENTICAL].startswith("DIFFERENT from NumPy in float64 by")
    assert not any(row.who == training.IDENTICAL and row.median for row in shown)


def test_a_run_that_somebody_else_disturbed_is_done_again_while_there_is_patience(monkeypatch):
    looks = iter([True, False, False, False])  # somebody is there after the first run, and goes
    monkeypatch.setattr(machine.Patience, "_disturbed", lambda _: next(looks))
    worked = training.Worked("cpu", [])
    seconds = iter([9.0, 1.0, 2.0])
    counting: dict = {"one": Answering()}
    counting["one"].ask = lambda question: next(seconds)
    worked.workers = counting
    assert worked.seconds(["one"], 2) == {"one": [1.0, 2.0]}
    # Nor is it waited for ever, nor at all in a quick run and beside a GPU.
    monkeypatch.setattr(machine.Patience, "_disturbed", lambda _: True)
    monkeypatch.setattr(machine.Patience, "seconds", 0.3)
    monkeypatch.setattr(machine.Patience, "waited", 0.0)
    patience = machine.Patience()
    for _ in range(9):
        patience.wait()
    assert patience.left <= 0 < 0.3 <= machine.Patience.waited
    assert not machine.Patience("gpu").wait() and not machine.Patience(quick=True).wait()


@pytest.mark.parametrize(
    "alone, both, there", [(1.0, 1.1, False), (1.0, 2.0, True), (1.6, 1.1, True)]
)
def test_somebody_is_there_where_a_thread_is_slower_than_it_was(monkeypatch, alone, both, there):
    monkeypatch.setattr(machine, "_seconds_of_threads", lambda n: both if n > 1 else alone)
    monkeypatch.setattr(machine.Patience, "_least", 1.0)
    monkeypatch.setattr(machine.Patience, "waited", 0.0)
    patience = machine.Patience()
    patience.left = 0.1
    assert patience.wait() is there
    assert (machine.Patience.waited > 0) is there


def test_a_turn_is_as_many_runs_as_before_it_and_the_time_of_one(monkeypatch, tmp_path):
    now, runs = [0.0], []

    def run():
        now[0] += 0.02
        runs.append(now[0])

    own = training.Trainer(run, lambda: [], None)
    monkeypatch.setattr(sys, "argv", ["training", "jaxmlp", "cpu", "training"])
    monkeypatch.setattr(training, "trainer", lambda *_: own)
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    handle = training.begin()
    case = Case((4, 3, 2), 2, 1, 10)._asdict()
    handle({"case": case, "path": str(tmp_path / "params.npz")})
    assert len(runs) == 1
    assert handle(None) == pytest.approx(0.02)  # three until 0.05 s are over, and three
    assert len(runs) == 1 + 2 * 3


@pytest.mark.parametrize("patience", ["-1", "nan", "inf", "long"])
def test_patience_is_a_number_of_seconds(patience, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--suite", "small", "--quick", "--patience", patience])
    assert ended.value.code == 2
    assert "--patience" in capsys.readouterr().err


def test_the_patience_that_is_asked_for_is_that_of_every_suite(monkeypatch):
    monkeypatch.setattr(machine.Patience, "seconds", 60.0)
    seen = []
    monkeypatch.setattr(command, "measured", lambda *_: seen.append(machine.Patience().left) or [])
    command.main(["--suite", "small", "--quick", "--patience", "7"])
    assert seen == [7.0]


class Answering:
    """A worker that answers what is expected, at once."""

    process = None

    def ask(self, question=None):
        return 1.0 if question is None else {"compiling": None, "versions": ""}

    def end(self):
        pass


def test_a_library_that_is_not_installed_is_a_row_that_says_so():
    worker = processes.Worker("benchmarks.training", "PyTorch, eager", "cpu", "training")
    try:
        pytest.importorskip("torch")
    except pytest.skip.Exception:
        with pytest.raises(processes.Unanswered, match=r"^not installed \(torch\)$"):
            worker.ask({"case": CASE._asdict(), "path": "nowhere.npz"})
    finally:
        worker.end()


def test_a_worker_that_dies_says_how():
    worker = processes.Worker("benchmarks.no_such_module")
    with pytest.raises(processes.Unanswered, match=r"^its process ended with status 1$"):
        worker.ask()
    worker.end()


@pytest.mark.parametrize("module", [ours, jax_grad])
def test_the_scans_lower_for_cuda(module, monkeypatch):
    def exported(run, params, state, data):
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, state, *data)
        )
        return jax.export.export(jax.jit(run), platforms=["cuda"])(*shapes)

    monkeypatch.setattr(module, "scanned", exported)
    assert module.scan(problem(CASE), "gpu").platforms == ("cuda",)


def test_the_branch_for_a_gpu_runs_on_what_is_here(monkeypatch):
    right = processes.environment
    monkeypatch.setattr(processes, "environment", lambda device="cpu": right("cpu"))
    cases = functools.partial(Case, n_examples=100)
    monkeypatch.setattr(training, "epoch_cases", lambda quick, device: [cases((784, 16, 10), 8, 3)])
    shown = []
    training.run("epoch", "gpu", True, shown.extend)
    times = {row.who for row in shown if row.quantity == "training" and row.median}
    assert {"jaxmlp", training.IDENTICAL, training.OURS_TOO} <= times
    notes = {row.who: row.note for row in shown}
    assert notes["scikit-learn"] == "RuntimeError: has no GPU"


def row(**fields):
    given = {"suite": "small", "case": "64-32-10 B=32", "quantity": "training", "who": "jaxmlp"}
    return rows.Row(**(given | {"unit": "µs a step", "median": 2.0} | fields))


def test_bounds_are_judged():
    assert row(bound="≥ 2").holds and not row(bound="≥ 2.1").holds
    assert row(bound="≤ 2").holds and not row(bound="≤ 1.9").holds
    assert row().holds and row(median=None, bound="≥ 9").holds


def test_rows_are_kept_and_the_last_run_is_reported(tmp_path, monkeypatch):
    about = rows.Context("2026-01-01T00:00:00", "abc", "a machine", "float32", "0")
    old = [row(who="old")]
    new = [row(low=1.5, high=2.5, least=1.25, share=0.5), row(who="x", median=None, note="absent")]
    rows.append(old, about, tmp_path)
    rows.append(new, about._replace(date="2026-01-02T00:00:00"), tmp_path)
    gpu = about._replace(device="a GPU", precision="TF32")
    rows.append([row(median=1.0)], gpu, tmp_path)
    on_cpu, ((on_gpu, its),) = rows.latest("small", tmp_path)
    ((found, context),) = on_cpu
    assert found == new and context.date == "2026-01-02T00:00:00"
    assert on_gpu == [row(median=1.0)] and its == gpu
    assert not rows.latest("epoch", tmp_path)
    monkeypatch.setattr(report, "REPORT", tmp_path / "REPORT.md")
    monkeypatch.setattr(report, "latest", lambda suite: rows.latest(suite, tmp_path))
    text = report.write().read_text()
    assert "| jaxmlp | 2 µs a step | 1.5 | 2.5 | 1.25 | 0.50 |" in text and "absent" in text
    assert "### a GPU, TF32" in text


def test_of_every_case_the_last_run_is_reported(tmp_path):
    about = rows.Context("2026-01-01T00:00:00", "abc", "a machine", "float32", "0")
    runs = ["ab", "abc", "a", "de", "fg"]  # the first is replaced, the second in part
    retired = next(case for suite, case in sorted(rows.RETIRED) if suite == "streaming")
    for day, cases in enumerate(runs):
        date = f"2026-01-0{day + 1}T00:00:00"
        of_all = row(case=f"{len(cases)} cases", quantity=rows.OF_ALL)  # no case itself
        own = [row(case=case) for case in cases]
        rows.append([*own, of_all], about._replace(date=date), tmp_path)
    (parts,) = rows.latest("small", tmp_path)
    found = [[own.case for own in found] for found, _ in parts]
    assert found == [["b", "c"], ["a", "1 cases"], ["d", "e", "2 cases"], ["f", "g", "2 cases"]]
    assert [context.date[9] for _, context in parts] == ["2", "3", "4", "5"]
    rows.append([row(suite="streaming", case=case) for case in (retired, "a")], about, tmp_path)
    (((found, _),),) = rows.latest("streaming", tmp_path)
    assert [own.case for own in found] == ["a"]


def test_the_chart_is_drawn(tmp_path):
    epoch = [row(suite="epoch", case=case) for case in ("a", "b")]
    report.chart(
        [*epoch, row(suite="epoch", case="b", who="other", median=3.0)], tmp_path / "x.png"
    )
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_missed_bound_is_status_1(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "measured", lambda *_: [row(bound="≥ 3")])
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(rows, "append", lambda *_: None)
    monkeypatch.setattr(report, "write", lambda: tmp_path)
    command.main(["--suite", "small"])
    with pytest.raises(SystemExit) as raised:
        command.main(["--suite", "small", "--check"])
    assert raised.value.code == 1


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch):
    def interrupted(suite, device, quick, data_dir, wanted, show):
        assert (suite, wanted) == ("small", ["64-32-10"])
        show([row(bound="≥ 9")])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    kept = []
    for quick, device in ((True, "cpu"), (False, "cpu"), (False, "gpu")):
        with pytest.raises(KeyboardInterrupt):
            command.measured("small", device, quick, None, ["64-32-10"], kept.extend)
    assert kept == [row(bound="≥ 9"), row()]  # nothing is asked of a GPU


def test_pytorch_compiles_beside_jax():
    names = ["ours", "scan", "NNX", "Equinox", "PyTorch, eager", "PyTorch, by hand", "sklearn"]
    on_a_cpu = training.lanes(names, "cpu")
    assert sorted(on_a_cpu) == sorted([who] for who in names)
    assert on_a_cpu[:4] == [["ours"], ["PyTorch, eager"], ["scan"], ["PyTorch, by hand"]]
    assert training.lanes(names, "gpu") == [[*names[:4], "sklearn"], names[4:6]]


def test_nothing_is_asked_of_a_quick_run(monkeypatch):
    monkeypatch.setattr(command, "run", lambda *arguments: arguments[-1]([row(bound="≥ 9")]))
    found = [command.measured("small", "cpu", quick, None, [], list) for quick in (True, False)]
    assert found == [[row()], [row(bound="≥ 9")]]


def test_a_case_is_named_by_a_part_of_its_name():
    assert rows.chosen("784-128-10 B=32", []) and rows.chosen("784-128-10 B=32", ["x", "B=32"])
    assert not rows.chosen("784-128-10 B=32", ["B=128"])


def test_what_differs_in_an_earlier_suite_is_status_1_also_of_a_quick_run(monkeypatch):
    rows_of = {"gradients": [row(median=None, note="DIFFERENT by 1")]}
    monkeypatch.setattr(command, "measured", lambda suite, *_: rows_of.get(suite, [row()]))
    with pytest.raises(SystemExit) as raised:
        command.main(["--suite", "all", "--quick", "--check"])
    assert raised.value.code == 1


def test_jax_is_not_imported_before_it_is_told_on_what_and_in_what_precision():
    code = "import sys, benchmarks.__main__; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bad_options_are_refused(capsys):
    for arguments in (["--suite", "fast"], [], ["--device", "tpu"]):
        with pytest.raises(SystemExit) as raised:
            command.main(arguments)
        assert raised.value.code == 2
    assert "--suite: expected" in capsys.readouterr().err


def test_the_rate_of_products_is_one_of_this_machine():
    rate = machine.numpy_rate((64, 64, 64))
    assert 1e8 < rate < 1e14
    assert json.dumps(rate)


def test_a_machine_that_is_not_quiet_is_seen():
    def row(**figures):
        return rows.Row("suite", "case", "training", "who", "s", **figures)

    quiet = [row(**rows.measured([1.0, 1.01, 1.02, 1.03])), row(median=3.0), row(note="missing")]
    assert rows.spread(quiet) == pytest.approx(1.024 / 1.006 - 1)
    assert command.about_rounds(rows.spread(quiet)) == ", rounds 2 % apart"
    unquiet = [row(**rows.measured([1.0, 1.1, 1.2, 1.6]))] * 2
    assert command.about_rounds(rows.spread(quiet + unquiet)).endswith("machine was not quiet")
    assert rows.spread([row(median=3.0)]) is None
