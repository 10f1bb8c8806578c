"""Splits in the same share of every class, and a part kept for validation."""

from typing import Any

import numpy as np
import pytest
from files import message_of
from hypothesis import given
from hypothesis import strategies as st

import jaxmlp.data
from jaxmlp.data import Examples, split_stratified

# Whether a dataset has a part for testing, say, a type checker cannot tell.
load_dataset: Any = jaxmlp.data.load_dataset

FRACTIONS = st.floats(0, 1) | st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.9])


@given(st.lists(st.integers(0, 5), max_size=60), FRACTIONS, st.integers(0, 9))
def test_the_part_has_its_exact_size_and_every_class_its_share(classes, fraction, seed):
    targets = np.array(classes, np.int32)
    rest, part = split_stratified(targets, fraction, np.random.default_rng(seed))
    assert len(part) == round(len(targets) * fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), np.arange(len(targets)))
    assert (np.diff(rest) > 0).all() and (np.diff(part) > 0).all()
    counts = np.bincount(targets, minlength=6)
    shares = np.bincount(targets[part], minlength=6)
    # Rounded down or up: less than one away, but for the rounding of the product.
    assert (abs(shares - counts * fraction) < 1 + 1e-8).all()
    emptied = (shares == counts) & (counts > 0)
    if emptied.any() and fraction < 1:
        # No class loses its last example while another could have given one within its share.
        assert not ((shares < np.ceil(counts * fraction - 1e-8)) & (shares + 1 < counts)).any()


def test_the_largest_remainders_are_rounded_up():
    # Shares of 0.3: 2.1, 1.5, 2.4 and 0 make 6; 5 come from rounding down, and the sixth goes to
    # the remainder 0.5.
    targets = np.repeat([0, 1, 2], [7, 5, 8])
    _, part = split_stratified(targets, 0.3, np.random.default_rng(0))
    assert np.bincount(targets[part]).tolist() == [2, 2, 2]


def test_a_class_with_one_example_keeps_it_in_the_rest_where_others_can_give():
    targets = np.array([0] * 9 + [1])
    for seed in range(20):
        rest, part = split_stratified(targets, 0.5, np.random.default_rng(seed))
        assert targets[rest].tolist().count(1) == 1 and len(part) == 5


@pytest.mark.parametrize(
    "targets",
    [np.linspace(0, 1, 50, dtype=np.float32), np.ones((50, 2), np.float32), np.ones((50, 2), int)],
    ids=["numbers", "several outputs", "several outputs of integers"],
)
def test_numbers_are_split_as_they_come(targets):
    rest, part = split_stratified(targets, 0.3, np.random.default_rng(0))
    assert (len(rest), len(part)) == (35, 15)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), np.arange(50))


def test_the_generator_decides_and_nothing_else():
    for targets in (np.repeat([0, 1], 50), np.zeros((100, 1), np.float32)):
        draws = [split_stratified(targets, 0.2, np.random.default_rng(s))[1] for s in (1, 1, 2)]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], draws[2])


def test_every_example_is_drawn_equally_often():
    # 2000 draws of a half: a share off by five standard deviations of a fair coin is 0.056.
    rng, targets = np.random.default_rng(0), np.repeat([0, 1], [4, 6])
    drawn = np.zeros(10)
    for _ in range(2000):
        drawn[split_stratified(targets, 0.5, rng)[1]] += 1
    np.testing.assert_allclose(drawn / 2000, 0.5, atol=0.056)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_and_1_is_named(fraction):
    rng = np.random.default_rng(0)
    assert message_of(ValueError, lambda: split_stratified(np.zeros(3, int), fraction, rng)) == (
        f"fraction: expected a number in [0, 1], got {fraction}"
    )


# ---------------------------------------------------------------------------------- validation


def test_a_part_for_validation_leaves_the_test_part_alone():
    whole, split = load_dataset("iris"), load_dataset("iris", validation_fraction=0.25)
    np.testing.assert_array_equal(split.test.inputs, whole.test.inputs)
    assert np.bincount(split.validation.targets).tolist() == [10, 10, 10]
    assert np.bincount(split.train.targets).tolist() == [30, 30, 30]
    both = np.concatenate([split.train.inputs, split.validation.inputs])
    np.testing.assert_array_equal(
        both[np.lexsort(both.T)], whole.train.inputs[np.lexsort(whole.train.inputs.T)]
    )


def test_the_seed_draws_the_part_for_validation():
    parts = [
        load_dataset("digits", validation_fraction=0.2, seed=seed).validation.inputs
        for seed in (0, 0, 1)
    ]
    assert len(parts[0]) == 287
    np.testing.assert_array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])


def test_weights_go_with_their_examples(tmp_path):
    numbers = np.arange(20.0)
    path = tmp_path / "set.npz"
    np.savez(path, inputs=numbers[:, None], targets=numbers, sample_weight=numbers + 1)
    dataset = load_dataset(path, validation_fraction=0.5)
    for part in (dataset.train, dataset.validation):
        assert isinstance(part, Examples) and len(part.targets) == 10
        np.testing.assert_array_equal(part.inputs, part.targets)
        np.testing.assert_array_equal(part.weights, part.inputs[:, 0] + 1)


def table(folder, targets):
    path = folder / "set.csv"
    path.write_text("a,y\n" + "".join(f"{row},{text}\n" for row, text in enumerate(targets)))
    return path


@pytest.mark.parametrize(
    ("targets", "options", "expected"),
    [
        (
            "xyxy",
            {"validation_fraction": 1.0},
            "expected a number in [0, 1), got 1.0",
        ),
        (
            "xyxy",
            {"validation_fraction": 0.1},
            "expected at least one example for training and one for validation, got 4 and 0 by 0.1 "
            "of 4",
        ),
        (
            "xyxy",
            {"validation_fraction": 0.9},
            "expected at least one example for training and one for validation, got 0 and 4 by 0.9 "
            "of 4",
        ),
        (
            "xyz",
            {"validation_fraction": 0.4},
            "expected to leave an example of every class for training, got none of 'x' by 0.4 of 3",
        ),
    ],
    ids=["all", "none for validation", "none for training", "a class without an example"],
)
def test_too_few_examples_are_named(tmp_path, targets, options, expected):
    path = table(tmp_path, targets)
    text = message_of(ValueError, lambda: load_dataset(path, **options))
    assert text == f"validation_fraction: {expected}"


def test_a_negative_seed_is_named():
    text = message_of(ValueError, lambda: load_dataset("iris", validation_fraction=0.1, seed=-1))
    assert text == "seed: expected an integer of at least 0, got -1"
