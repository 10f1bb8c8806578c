"""scikit-learn's MLPClassifier over the examples in their order: `partial_fit`, or `fit`."""

from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier

from benchmarks.libraries import Trainer
from benchmarks.problems import CLASSES, HIDDEN, RATE, Problem


def partial_fit(problem: Problem, device: str) -> Trainer:
    """Return passes over the rows of an epoch, which it cuts into batches itself."""
    if device != "cpu":
        raise RuntimeError("has no GPU")
    case = problem.case
    epochs = max(1, case.steps * case.batch_size // case.n_examples)
    rows = problem.order.reshape(-1)[: case.steps * case.batch_size // epochs]
    inputs, classes = problem.inputs[rows], problem.classes[rows]
    settings: Any = {"batch_size": case.batch_size}  # annotated as a string there
    model = MLPClassifier(
        case.sizes[1:-1],
        solver="sgd",
        alpha=0.0,
        **settings,
        learning_rate_init=RATE,
        momentum=0.0,
        nesterovs_momentum=False,
        shuffle=False,
    )
    model.partial_fit(
        inputs[: case.batch_size], classes[: case.batch_size], classes=np.arange(CLASSES)
    )
    # The steps before: its optimiser holds these very arrays.
    for ours, weight in zip(model.coefs_, problem.weights, strict=True):
        ours[...] = weight.T
    for ours, bias in zip(model.intercepts_, problem.biases, strict=True):
        ours[...] = bias

    def params() -> list[np.ndarray]:
        pairs = zip(model.coefs_, model.intercepts_, strict=True)
        return [array for weight, bias in pairs for array in (weight.T, bias)]

    # Its `fit` checks the data once, and its epochs do not stop early.
    model.set_params(warm_start=True, max_iter=epochs, n_iter_no_change=10**9)

    def steps() -> None:
        if epochs == 1:
            model.partial_fit(inputs, classes)
        else:
            model.fit(inputs, classes)

    return Trainer(steps, params)


def accurate(data: Any, seed: int, epochs: int, device: str) -> float:
    """Return the accuracy on the test images after the first epoch that brings it to 98 %."""
    x, test_x = (data[name].astype(np.float32) / np.float32(255) for name in ("x", "test_x"))
    # Of Adam with its default rate and of SGD with Nesterov's momentum, at rates of 0.1 to 0.4 with
    # batches of 64 to 512, the fastest in the mean of three seeds that is there with each.
    settings: Any = {"batch_size": 512}
    model = MLPClassifier(
        (HIDDEN,), solver="sgd", learning_rate_init=0.4, random_state=seed, **settings
    )
    accuracy = 0.0
    for _ in range(epochs):
        model.partial_fit(x, data["t"], classes=np.arange(CLASSES))
        accuracy = float(model.score(test_x, data["test_t"]))
        if accuracy >= 0.98:
            break
    return accuracy
