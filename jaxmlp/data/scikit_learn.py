"""The small datasets that ship with scikit-learn, read without importing it.

None of them has an official split. The digits' is a fixed permutation; of the others a fixed fifth
is for testing, with the same share of every class.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.data.examples import Dataset, Examples
from jaxmlp.data.splits import split_stratified, subset
from jaxmlp.scaling import Scaling

_DIGITS_IN_TRAIN = 1437  # four fifths of 1797
_TEST_FRACTION = 0.2


class _Set(NamedTuple):
    """Where scikit-learn keeps a set, and how it names its classes and inputs.

    One file has the inputs and, in its last column, the targets; of two the second has the targets.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...] | None
    features: tuple[str, ...] | None
    header_lines: int = 0
    delimiter: str | None = ","


_CELL = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity"),
    *("concave points", "symmetry", "fractal dimension"),
)

_SETS = {
    "digits": _Set(("digits.csv.gz",), tuple("0123456789"), None),
    "iris": _Set(
        ("iris.csv",),
        ("setosa", "versicolor", "virginica"),
        ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
        header_lines=1,
    ),
    "wine": _Set(
        ("wine_data.csv",),
        ("class_0", "class_1", "class_2"),
        (
            *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols"),
            *("flavanoids", "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue"),
            *("od280/od315_of_diluted_wines", "proline"),
        ),
        header_lines=1,
    ),
    "breast_cancer": _Set(
        ("breast_cancer.csv",),
        ("malignant", "benign"),
        (
            *(f"mean {name}" for name in _CELL),
            *(f"{name} error" for name in _CELL),
            *(f"worst {name}" for name in _CELL),
        ),
        header_lines=1,
    ),
    "diabetes": _Set(
        ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"),
        None,
        ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
        delimiter=None,
    ),
}

SCIKIT_LEARN = tuple(_SETS)
"""Their names."""


def load_scikit_learn(name: str) -> Dataset:
    """Return one of scikit-learn's datasets.

    Args:
        name: One of `SCIKIT_LEARN`.

    Returns:
        The dataset, split. Inputs are uint8 for the digits and else float64, in the units in which
        they were published.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    inputs, targets, source = _read(name)
    classes, features = _SETS[name].classes, _SETS[name].features
    if classes is None:
        targets = targets.astype(np.float32).reshape(-1, 1)
    else:
        targets = targets.astype(np.int32)
    scaling, image_shape = None, None
    if name == "digits":
        inputs = inputs.astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(inputs))
        rest, part = order[:_DIGITS_IN_TRAIN], order[_DIGITS_IN_TRAIN:]
        scaling, image_shape = Scaling(np.float64(0), np.float64(1 / 16)), (8, 8)
    else:
        rest, part = split_stratified(targets, _TEST_FRACTION, np.random.default_rng(0))
    examples = Examples(inputs, targets)
    return Dataset(
        name=name,
        source=source,
        train=subset(examples, rest),
        validation=None,
        test=subset(examples, part),
        classes=classes,
        features=features,
        scaling=scaling,
        image_shape=image_shape,
    )


def _read(name: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Return a set's inputs and targets in float64, and where they were read."""
    paths = [_file(file) for file in _SETS[name].files]
    found = [path for path in paths if path is not None]
    if len(found) < len(paths):  # another release may keep them elsewhere
        import sklearn.datasets

        options: dict[str, Any] = {"scaled": False} if name == "diabetes" else {}
        load = getattr(sklearn.datasets, f"load_{name}")
        return *load(return_X_y=True, **options), f"sklearn.datasets.load_{name}()"
    _, _, _, skipped, delimiter = _SETS[name]
    tables = [np.loadtxt(path, delimiter=delimiter, skiprows=skipped) for path in found]
    if len(tables) == 1:
        return tables[0][:, :-1], tables[0][:, -1], str(found[0])
    return tables[0], tables[1], str(found[0])


def _file(name: str) -> Path | None:
    """Return one of scikit-learn's own files, found without an import that takes a second."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", name)
        if path.is_file():
            return path
    return None
