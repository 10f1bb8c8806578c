"""What a sweep tries: grids, draws, files; what comes of trials; their folder and picture."""

import json
import math
from typing import Any

import numpy as np
import pytest

from jaxmlp.plots import response_surface_figure
from jaxmlp.training import sweep_folder
from jaxmlp.training.sweeps import (
    Choice,
    Range,
    Summary,
    Trial,
    choice_of,
    grid,
    parsed_choice,
    ranked,
    samples,
    summaries,
)


def test_a_choice_is_numbers_or_a_range():
    assert parsed_choice("x", ["0.1", "2"]) == (0.1, 2.0)
    assert parsed_choice("x", ["0.1:2"]) == Range(0.1, 2.0)
    assert parsed_choice("x", ["0.1:2:log"]) == Range(0.1, 2.0, True)
    assert choice_of("x", 3) == (3.0,)
    assert choice_of("x", [1, 2.5]) == (1.0, 2.5)
    assert choice_of("x", "1:2") == Range(1.0, 2.0)
    assert choice_of("x", {"low": 1, "high": 2, "log": True}) == Range(1.0, 2.0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "expected numbers"),
        (["1:2:3"], "expected LOW:HIGH or LOW:HIGH:log, got '1:2:3'"),
        (["2:1"], "expected LOW below HIGH, got 2:1"),
        (["0:1:log"], "expected LOW above 0"),
        (["nan:1"], "expected LOW below HIGH"),
        (["1:inf"], "expected LOW below HIGH"),
        (["1", "2:3"], "expected numbers, or one range"),
        (["1", "1.0"], "expected different numbers"),
        ([], "at least one"),
    ],
)
def test_bad_choices(words, message):
    with pytest.raises(ValueError, match=f"^rate: .*{message}"):
        parsed_choice("rate", words)


@pytest.mark.parametrize(
    "value",
    [{"low": 1}, {"low": 1, "high": 2, "step": 1}, {"low": 1, "high": 2, "log": "yes"}, None, True,
     [None], ["a"], [], {"low": "a", "high": 2}, "fast"],
)  # fmt: skip
def test_bad_choices_of_a_file(value):
    with pytest.raises(ValueError, match=r"^rate: expected"):
        choice_of("rate", value)


def test_a_grid_is_every_combination():
    assert grid({"a": (1.0, 2.0), "b": (3.0, 4.0)}) == [
        {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 3.0}, {"a": 2.0, "b": 4.0},
    ]  # fmt: skip
    assert grid({}) == [{}]
    with pytest.raises(ValueError, match="samples: expected how many to draw from the range of a"):
        grid({"a": Range(1, 2)})


def test_draws_are_spread_as_they_should_be():
    space: dict[str, Choice] = {
        "rate": Range(1e-4, 1.0, True),
        "decay": (0.0, 1e-3),
        "drop": Range(0.2, 0.6),
    }
    drawn = samples(space, 4000, seed=0)
    rates = np.log10([one["rate"] for one in drawn])
    counts = np.histogram(rates, bins=4, range=(-4, 0))[0]
    assert abs(counts - 1000).max() < 130  # 4.7 standard deviations
    assert abs(sum(one["decay"] == 0 for one in drawn) - 2000) < 150
    drops = np.array([one["drop"] for one in drawn])
    assert 0.2 <= drops.min() < 0.21 and 0.59 < drops.max() <= 0.6
    assert abs(np.corrcoef(rates, drops)[0, 1]) < 0.08
    assert samples(space, 10, seed=0) == drawn[:10]
    assert samples(space, 10, seed=1) != drawn[:10]


def test_no_setting_is_drawn_twice():
    space: dict[str, Choice] = {"rate": (0.1, 0.2), "decay": (0.0, 1e-3, 1e-2)}
    drawn = samples(space, 6, seed=0)
    assert sorted(drawn, key=str) == sorted(grid(space), key=str)
    assert samples(space, 3, seed=0) == drawn[:3]
    with pytest.raises(ValueError, match="samples: expected at most 6, as many combinations"):
        samples(space, 7, seed=0)


SETTINGS = [{"rate": 0.1}, {"rate": 0.2}, {"rate": 0.3}]
TRIALS = [
    Trial(0, 5, 4, {"epoch": 4, "validation_loss": 0.3, "validation_accuracy": 0.8, "seconds": 1}),
    Trial(0, 6, 2, {"epoch": 2, "validation_loss": 0.5, "validation_accuracy": 0.6, "seconds": 1}),
    Trial(1, 5, 0, {}, "training diverged: the validation loss became nan"),
    Trial(1, 6, 4, {"epoch": 4, "validation_loss": 0.1, "validation_accuracy": 0.9, "seconds": 1}),
]


def test_a_summary_has_means_and_deviations_over_the_seeds():
    first, second = summaries(SETTINGS, TRIALS)
    assert first.means == pytest.approx({"validation_loss": 0.4, "validation_accuracy": 0.7})
    assert first.deviations == pytest.approx(
        {"validation_loss": math.sqrt(0.02), "validation_accuracy": math.sqrt(0.02)}
    )
    assert (first.setting, first.values, first.epochs, first.diverged) == (0, SETTINGS[0], 3.0, 0)
    assert (second.means, second.deviations, second.diverged) == ({}, {}, 1)
    (single,) = summaries(SETTINGS[:1], TRIALS[:1])
    assert single.deviations["validation_loss"] is None


def summary(setting, value, epochs=4.0, diverged=0):
    means = {} if diverged else {"validation_loss": value, "validation_accuracy": value}
    return Summary(setting, {}, epochs, means, dict.fromkeys(means), diverged)


def test_the_best_come_first_and_the_diverged_last():
    found = [summary(0, 0.2), summary(1, 0, diverged=1), summary(2, 0.1), summary(3, 0.3, 8.0)]

    def order(monitor, halving):
        return [one.setting for one in ranked(found, monitor, halving)]

    assert order("validation_loss", False) == [2, 0, 3, 1]
    assert order("validation_accuracy", False) == [3, 0, 2, 1]
    assert order("validation_loss", True) == [3, 2, 0, 1]


def test_the_folder_gives_back_what_was_written(tmp_path):
    assert sweep_folder.read_sweep(tmp_path) is None
    assert sweep_folder.read_trials(tmp_path) == ([], None)
    content = {"options": {}, "settings": SETTINGS, "fingerprint": "ab", "members_per_pass": 3}
    sweep_folder.write_sweep(tmp_path, content)
    assert sweep_folder.read_sweep(tmp_path) == content
    sweep_folder.write_trials(tmp_path, TRIALS)
    assert sweep_folder.read_trials(tmp_path) == (TRIALS, None)
    sweep_folder.write_results(tmp_path, summaries(SETTINGS, TRIALS))
    rows = (tmp_path / sweep_folder.RESULTS).read_text().splitlines()
    assert rows[0] == (
        "setting,rate,epochs,diverged,validation_loss,validation_loss_sd,validation_accuracy,"
        "validation_accuracy_sd"
    )
    assert rows[1].startswith("0,0.1,3,0,0.4,0.1414")
    assert rows[2] == "1,0.2,2,1,,,,"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sweep.json", "{", "not a sweep's"),
        ("sweep.json", "[]", "not a sweep's"),
        ("sweep.json", json.dumps({"format_version": 99}), "expected format 1, got 99"),
        ("sweep.json", json.dumps({"format_version": 1}), "not a sweep's: 'settings'"),
    ],
)
def test_damaged_options(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        sweep_folder.read_sweep(tmp_path)


@pytest.mark.parametrize(
    "line",
    ["{}", "{", "", "[]", '{"setting": "a", "seed": 0, "epochs": 1, "record": {}}', "\udcff"],
)
def test_trials_before_a_damaged_line_are_there(tmp_path, line):
    first = json.dumps(TRIALS[0]._asdict()) + "\n"
    content = (first + line + "\n" + first).encode(errors="surrogateescape")
    (tmp_path / "trials.jsonl").write_bytes(content)
    trials, damage = sweep_folder.read_trials(tmp_path)
    assert trials == TRIALS[:1]
    assert damage is not None and "trials.jsonl: line 2 is damaged" in damage


def drawn(names, count=12, seeds=2, lost=()):
    """Summaries of settings whose loss is lowest where all numbers are in the middle."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        values = {name: float(10 ** rng.uniform(-3, 0)) for name in names}
        loss = 0.1 + sum((math.log10(value) + 1.5) ** 2 for value in values.values())
        means = {} if number in lost else {"validation_loss": loss}
        spread = dict.fromkeys(means, 0.05 if seeds > 1 else None)
        found.append(Summary(number, values, 4.0, means, spread, int(number in lost)))
    return found


def artists(axes, gid) -> list[Any]:
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def test_a_curve_of_one_number():
    found = drawn(["learning_rate"], lost=(3,))
    figure = response_surface_figure(found, "validation_loss")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    (ring,) = artists(axes, "best")
    best = min((one for one in found if one.means), key=lambda one: one.means["validation_loss"])
    assert ring.get_xdata()[0] == best.values["learning_rate"]
    assert ring.get_ydata()[0] == best.means["validation_loss"]
    assert "of which 1 diverged" in figure.get_suptitle()
    assert [text.get_text() for text in axes.texts] == ["diverged"]


@pytest.mark.parametrize(("count", "panels"), [(2, 1), (3, 3), (4, 3)])
def test_a_panel_for_every_pair_of_numbers(count, panels):
    found = drawn(["learning_rate", "weight_decay", "dropout", "scale"][:count], lost=(1,))
    figure = response_surface_figure(found, "validation_loss")
    panel_axes = [axes for axes in figure.axes if artists(axes, "found")]
    assert len(panel_axes) == panels
    for axes in panel_axes:
        (points,) = artists(axes, "found")
        assert len(points.get_offsets()) == 11
        (lost,) = artists(axes, "lost")
        assert len(lost.get_xdata()) == 1
        best = min(
            (one for one in found if one.means), key=lambda one: one.means["validation_loss"]
        )
        (ring,) = artists(axes, "best")
        name = axes.get_xlabel().replace(" ", "_")
        assert ring.get_xdata()[0] == best.values[name]


def test_a_number_that_never_differs_has_no_axis_and_none_no_picture():
    found = [one._replace(values={**one.values, "scale": 1.0}) for one in drawn(["learning_rate"])]
    (axes,) = response_surface_figure(found, "validation_loss").axes
    assert axes.get_xlabel() == "learning rate"
    assert response_surface_figure(found[:1], "validation_loss") is None
    everything = drawn(["learning_rate"], lost=range(12))
    assert response_surface_figure(everything, "validation_loss") is None
