"""A fit by a stochastic solver that is prepared: what its epochs take, and where it stands."""

import secrets
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmlp.estimators.epochs import Progress
from jaxmlp.estimators.solvers import Solver
from jaxmlp.network import Network, Parameters
from jaxmlp.privacy import epsilon, padded_size, poisson_batches
from jaxmlp.training.orders import bucket
from jaxmlp.training.regularization import Privacy, Regularization

# Adam's, whose complements are those of the rounded ones: its correction of the bias computes with
# these, and the errors of both cancel.
_DECAYS = ("beta_1", "beta_2")


class OptimizerState:
    """Where a stochastic solver stands, in NumPy arrays: `partial_fit` goes on from it."""

    def __init__(self, solver: Solver, learning_rate: float, state: Any) -> None:
        self.solver, self.learning_rate, self.state, self.steps = solver, learning_rate, state, 0


@dataclass
class Training:
    """What the epochs of one fit take, its examples apart, and what they have reached.

    A step takes `padding` rows of an order, which are the batch's and, in private training where
    its size is drawn, some of weight 0. `order` is that of the last epoch. `sampler` draws the
    batches of private training, and is None in any other.
    """

    network: Network
    solver: Solver
    dtype: np.dtype
    n_examples: int
    batch_size: int
    steps: int
    padding: int
    limit: int
    numbers: dict[str, Any]
    regularization: Regularization
    key: Any
    progress: Progress
    rng: np.random.RandomState
    order: np.ndarray
    shuffle: bool
    sampler: np.random.Generator | None

    def rows(self, n_examples: int) -> int:
        """Return the length of a padded order of so many examples, or of any in their bucket."""
        return -(-bucket(n_examples) // self.batch_size) * self.padding

    def drawn(self, count: int) -> list[np.ndarray]:
        """Return the orders of the next epochs.

        One permutation of the order before for each epoch, as scikit-learn draws them.
        """
        orders = []
        sampling = self.batch_size / self.n_examples
        for _ in range(count):
            if self.sampler is not None:
                batches = poisson_batches(
                    self.sampler, self.n_examples, sampling, self.steps, self.padding
                )
                orders.append(batches.reshape(-1))
                continue
            if self.shuffle:
                self.order = self.order[self.rng.permutation(self.n_examples)]
            orders.append(self.order)
        return orders

    def position(self) -> tuple[np.ndarray, Any]:
        """Return from where the next order is drawn: the last one, and the state of `rng`."""
        return self.order, self.rng.get_state()

    def rewind(self, position: tuple[np.ndarray, Any], epochs: int = 0) -> None:
        """Go back to a position, and on by some epochs, as if no others had been drawn."""
        self.order, state = position
        self.rng.set_state(state)
        self.drawn(epochs)


def prepared(
    estimator: Any,
    n_examples: int,
    dtype: Any,
    rng: np.random.RandomState,
    incremental: bool = False,
) -> Training:
    """Return what the epochs of an initialised estimator take, and begin its optimizer's state.

    Args:
        estimator: One of ours, with its first weights.
        n_examples: How many it is trained on.
        dtype: Theirs.
        rng: What the weights were drawn with; the key of dropout is drawn here.
        incremental: Whether it is one epoch, with the optimizer's state kept.
    """
    private = estimator.noise_multiplier is not None
    batch_size = estimator._batch_size(n_examples)
    solver = Solver(estimator.solver, bool(estimator.nesterovs_momentum))
    network, params = estimator._network(), estimator._params()
    optimizer = getattr(estimator, "_optimizer", None)
    if not incremental or optimizer is None or optimizer.solver != solver:
        rate = float(estimator.learning_rate_init)
        optimizer = OptimizerState(solver, rate, solver.init(params))
        estimator._optimizer = optimizer

    def number(value: Any) -> Any:
        return np.asarray(value, dtype)

    rates = estimator._dropout_rates(list(network.sizes[1:-1]))
    smoothing = getattr(estimator, "label_smoothing", 0)
    steps = -(-n_examples // batch_size)
    limit = 1 if incremental else estimator.max_iter
    privacy, padding = None, batch_size
    if private:
        sigma, clip_norm = estimator.noise_multiplier, estimator.clip_norm
        privacy = Privacy(number(clip_norm), number(sigma), number(batch_size))
        sampling = batch_size / n_examples
        padding = padded_size(n_examples, sampling, limit * steps)
        spent = epsilon(float(sigma), sampling, limit * steps, float(estimator.delta))
        estimator.epsilon_spent_ = spent
    dropout = None
    if any(rates):
        dropout = (None, *(number(rate) if rate else None for rate in rates))
    key = None
    if private:  # known to nobody: whoever knew the noise could subtract it
        words = np.frombuffer(secrets.token_bytes(8), np.uint32)
        key = jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")
    elif dropout is not None:
        key = jax.random.key(int(rng.randint(2**31 - 1)))
    watched = not estimator.early_stopping and not private
    names = ("tol", "alpha", "momentum", "beta_1", "beta_2", "epsilon")
    best = estimator.best_loss_ if estimator.best_loss_ is not None else np.inf
    estimator.n_iter_ = 0
    return Training(
        network=network,
        solver=solver,
        dtype=np.dtype(dtype),
        n_examples=n_examples,
        batch_size=batch_size,
        steps=steps,
        padding=padding,
        limit=limit,
        numbers={name: number(getattr(estimator, name)) for name in names}
        | {f"1 - {name}": number(1 - number(getattr(estimator, name))) for name in _DECAYS}
        | {
            "n_examples": np.int32(n_examples),
            "1 / n_examples": number(1 / n_examples),
            "patience": number(estimator.n_iter_no_change if watched else np.inf),
        },
        regularization=Regularization(
            label_smoothing=number(smoothing) if smoothing else None,
            dropout=dropout,
            privacy=privacy,
        ),
        key=key,
        progress=Progress(
            params,
            optimizer.state,
            np.int32(optimizer.steps),
            number(best),
            np.int32(estimator._no_improvement_count),
            number(_squares(params)),
        ),
        rng=rng,
        order=np.arange(n_examples),
        shuffle=estimator.shuffle,
        sampler=np.random.default_rng() if private else None,
    )


def _squares(params: Parameters) -> float:
    """Return Σ ‖W‖² of arrays of NumPy: infinite, without a warning, where it overflows."""
    with np.errstate(over="ignore"):
        return sum(float(np.sum(np.square(layer.weight))) for layer in params)
