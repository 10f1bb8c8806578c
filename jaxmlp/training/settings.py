"""How to train: every number and name that `fit` takes, checked before anything is compiled."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxmlp.evaluation import is_classifier
from jaxmlp.network import Network
from jaxmlp.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    default_weight_decay,
    learning_rates,
)
from jaxmlp.training.regularization import Privacy, Regularization
from jaxmlp.validation import check_count, check_name, check_number

SHUFFLES = ("full", "chunks")

_LARGEST_RATE = 0.999  # of dropout: masks are drawn to 16 bits


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a training, as `fit` takes them; see there for what each means."""

    optimizer: str = "adam"
    optimizer_settings: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.0
    batch_size: int = 128
    epochs: int = 10
    shuffle: str = "full"
    weight_decay: float | None = None
    clip_norm: float | None = None
    max_norm: float | None = None
    dropout: tuple[float, ...] = ()
    input_dropout: float = 0.0
    label_smoothing: float = 0.0
    average_decay: float | None = None
    patience: int | None = None
    monitor: str = "validation_loss"
    noise_multiplier: float | None = None
    delta: float | None = None
    unprotected_figures: bool = False

    def check(self, network: Network) -> None:
        """Raise where a setting is unknown, out of its range or not for this network.

        Raises:
            TypeError: A number that is none.
            ValueError: Any other fault, by its name; or a network that nothing can be learned with.
        """
        if network.loss == "softmax_cross_entropy" and network.sizes[-1] == 1:
            raise ValueError(
                "network: expected at least two outputs for softmax_cross_entropy, whose loss is 0 "
                "with one, got 1 (sigmoid_binary_cross_entropy takes one for two classes)"
            )
        if not isinstance(self.optimizer, str):
            raise TypeError(
                "optimizer: expected a name such as 'adam' (a transformation of optax's goes into "
                "a loop of your own, with loss_and_gradient), got "
                f"{type(self.optimizer).__name__}"
            )
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        known = OPTIMIZERS[self.optimizer].settings
        if not isinstance(self.optimizer_settings, Mapping):
            raise TypeError(
                f"optimizer_settings: expected name → number, got {self.optimizer_settings!r:.60}"
            )
        for name, value in self.optimizer_settings.items():
            if name not in known:
                raise ValueError(
                    f"optimizer_settings: expected {', '.join(known) or 'none'} for "
                    f"{self.optimizer}, got {name!r}"
                )
            # All but eps are shares of what was, in whose powers optax divides by 1 − share^t.
            high = math.inf if name == "eps" else 1
            check_number(f"optimizer_settings: {name}", value, 0, high)
        check_number("learning_rate", self.learning_rate, 0, math.inf, above=True)
        check_name("schedule", self.schedule, SCHEDULES)
        check_number("warmup", self.warmup, 0, 1)
        check_name("shuffle", self.shuffle, SHUFFLES)
        for name in ("batch_size", "epochs"):
            check_count(name, getattr(self, name))
        if self.weight_decay is not None:
            check_number("weight_decay", self.weight_decay, 0, math.inf)
        for name in ("clip_norm", "max_norm"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, 0, math.inf, above=True)
        hidden = len(network.activations)
        if len(self.dropout) not in (0, 1, hidden):
            raise ValueError(
                f"dropout: expected one rate or {hidden}, one for each hidden layer, got "
                f"{len(self.dropout)}"
            )
        for value in self.dropout:
            check_number("dropout", value, 0, 1)
        if any(self.dropout) and not hidden:
            raise ValueError("dropout: expected none for a network without a hidden layer")
        check_number("input_dropout", self.input_dropout, 0, 1)
        for name, values in (("dropout", self.dropout), ("input_dropout", (self.input_dropout,))):
            if max(values, default=0) > _LARGEST_RATE:
                raise ValueError(f"{name}: expected at most {_LARGEST_RATE}, got {max(values)}")
        check_number("label_smoothing", self.label_smoothing, 0, 1)
        if self.label_smoothing and not is_classifier(network):
            raise ValueError(
                f"label_smoothing: expected 0 for the loss {network.loss}, which has none"
            )
        if self.average_decay is not None:
            check_number("average_decay", self.average_decay, 0, 1, above=True, rounded=False)
        if self.patience is not None:
            check_count("patience", self.patience)
        if not isinstance(self.monitor, str) or not self.monitor.endswith(("_loss", "_accuracy")):
            raise ValueError(
                "monitor: expected the loss or the accuracy of an evaluation, such as "
                f"validation_loss, got {self.monitor!r}"
            )
        if self.monitor.endswith("_accuracy") and not is_classifier(network):
            raise ValueError(f"monitor: expected a loss, as {network.loss} has no accuracy")
        self._check_privacy()

    def _check_privacy(self) -> None:
        """Raise where the settings of a private training are not complete.

        Raises:
            ValueError: By the name of what is missing, or out of its range.
        """
        if self.noise_multiplier is None:
            for name in ("delta", "unprotected_figures"):
                if getattr(self, name):
                    raise ValueError(f"{name}: expected none without a noise_multiplier")
            return
        check_number("noise_multiplier", self.noise_multiplier, 0, math.inf, above=True)
        if self.shuffle != "full":
            raise ValueError(
                f"shuffle: expected full for a private training, which draws every batch from all "
                f"examples, got {self.shuffle}"
            )
        for name in ("clip_norm", "delta"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: expected a number for a private training, got none")
        check_number("delta", self.delta, 0, 1, above=True, rounded=False)

    @property
    def private(self) -> bool:
        """Whether the gradients are clipped one by one and noise is added to their sum."""
        return self.noise_multiplier is not None

    @property
    def _batch_norm(self) -> float | None:
        """The norm down to which a batch's gradient is scaled, or None."""
        return None if self.private else self.clip_norm

    @property
    def decay(self) -> float:
        """The weight decay, the optimiser's own where none is given."""
        if self.weight_decay is None:
            return default_weight_decay(self.optimizer)
        return float(self.weight_decay)

    @property
    def transformation(self) -> tuple[str, bool, bool]:
        """The arguments of `optimizer_named`: name, decaying, clipping."""
        return self.optimizer, self.decay > 0, self._batch_norm is not None

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that the optimiser's state holds, but for the learning rate."""
        numbers = {name: float(value) for name, value in self.optimizer_settings.items()}
        defaults = OPTIMIZERS[self.optimizer].defaults()
        numbers = {**defaults, **numbers}
        if self.decay > 0:
            numbers["weight_decay"] = self.decay
        if self._batch_norm is not None:
            numbers["clip_norm"] = float(self._batch_norm)
        return numbers

    def regularization(self, network: Network, dtype: DTypeLike) -> Regularization:
        """Return the numbers of the regularised step, in `dtype`; None for what is off."""

        def number(value: float | None) -> Any:
            return jax.device_put(np.asarray(value, dtype)) if value else None

        hidden = self.dropout * len(network.activations) if len(self.dropout) == 1 else self.dropout
        rates = (self.input_dropout, *(hidden or (0.0,) * len(network.activations)))
        return Regularization(
            label_smoothing=number(self.label_smoothing),
            dropout=tuple(number(rate) for rate in rates) if any(rates) else None,
            max_norm=number(self.max_norm),
            average_forgets=number(self.average_decay and 1 - self.average_decay),
            privacy=Privacy(*map(number, (self.clip_norm, self.noise_multiplier, self.batch_size)))
            if self.private
            else None,
        )

    def rates(self, first: int, end: int, total: int) -> np.ndarray:
        """Return the learning rates of the steps `first` … `end` − 1 of `total`."""
        steps = np.arange(first, end)
        return learning_rates(self.learning_rate, self.schedule, self.warmup, steps, total)
