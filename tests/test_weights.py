"""How much classes and examples count."""

import numpy as np
import pytest
from files import message_of
from hypothesis import given
from hypothesis import strategies as st

from jaxmlp.data import class_weights, example_weights

TARGETS = np.array([0, 0, 0, 1, 2, 2], np.int32)
NAMES = ("cat", "dog", "cow")


@given(st.lists(st.integers(0, 3), max_size=40))
def test_balanced_weights_are_scikit_learns(classes):
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.array([0, 1, 2, 3, *classes])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=targets)
    # The same quotient, or one more rounding.
    np.testing.assert_allclose(class_weights(targets, 4, "balanced"), expected, rtol=1e-15)


def test_balanced_classes_count_alike_and_as_much_as_all_examples():
    weights = example_weights(TARGETS, class_weights(TARGETS, NAMES, "balanced"))
    assert weights.dtype == np.float32
    # Sums of at most three float32 numbers.
    np.testing.assert_allclose(np.bincount(TARGETS, weights), [2, 2, 2], rtol=1e-6)


def test_weights_by_name_leave_the_other_classes_at_1():
    assert class_weights(TARGETS, NAMES, {"cow": 3, "cat": 0.5}).tolist() == [0.5, 1, 3]
    assert class_weights(TARGETS, 3, {"2": 3}).tolist() == [1, 1, 3]


def test_an_example_counts_as_its_class_times_its_own_weight():
    weights = example_weights(TARGETS, np.array([0.5, 1, 3]), np.array([1, 2, 0, 4, 5, 6]))
    assert weights.tolist() == [0.5, 1, 0, 4, 15, 18]
    assert example_weights(TARGETS, np.array([0, 1, 2])).tolist() == [0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("targets", "how", "expected"),
    [
        (
            TARGETS,
            {"horse": 2},
            "class_weight: unknown class 'horse': expected one of 'cat', 'dog', 'cow'",
        ),
        (TARGETS, {"cat": -1}, "class_weight: expected finite numbers ≥ 0, got -1 for 'cat'"),
        (
            TARGETS,
            {"cat": float("nan")},
            "class_weight: expected finite numbers ≥ 0, got nan for 'cat'",
        ),
        (
            TARGETS,
            "even",
            "class_weight: expected 'balanced' or a weight by name, got 'even'",
        ),
        (
            TARGETS[:4],
            "balanced",
            "class_weight: expected examples of every class to balance them, got none of 'cow'",
        ),
        (
            np.array([0, 3]),
            "balanced",
            "targets: expected classes 0 to 2, got 3 at [1] (1 of 2 are outside)",
        ),
    ],
    ids=["unknown", "negative", "NaN", "another word", "no examples", "no class"],
)
def test_what_cannot_be_a_weight_is_named(targets, how, expected):
    assert message_of(ValueError, lambda: class_weights(targets, NAMES, how)) == expected


def test_weights_of_examples_that_do_not_fit_or_are_all_0_are_named():
    ones = np.ones(3)
    for weights, own, expected in (
        (ones, np.ones(5), "sample_weight: expected shape (6,), got (5,)"),
        (
            np.ones(2),
            None,
            "targets: expected classes 0 to 1, got 2 at [4] (2 of 6 are outside)",
        ),
        (
            np.array([1, 0, 0]),
            np.array([0, 0, 0, 1, 1, 1]),
            "class_weight: expected an example that weighs more than 0, got none (a class counts "
            "as its weight times sample_weight)",
        ),
        (
            1e30 * ones,
            np.full(6, 1e30),
            "the weights of classes times sample_weight: expected finite numbers, got inf at [0] "
            "in float32, whose largest is 3.4e+38 (6 of 6 are not finite)",
        ),
    ):
        call = lambda weights=weights, own=own: example_weights(TARGETS, weights, own)  # noqa: E731
        assert message_of(ValueError, call) == expected
