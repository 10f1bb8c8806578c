"""The options of `jaxmlp train`, given or read back from the run that was begun with them."""

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxmlp.cli.console import bad_input
from jaxmlp.training import runs

REGRESSION = {"auto": None, "classes": False, "numbers": True}
"""What `targets` says → the `regression` of `load_dataset`."""


@dataclasses.dataclass
class Train:
    """Train a network on real data with the hand-derived gradient, and save it."""

    dataset: str = "digits"
    """The data: digits, iris, wine, breast_cancer or diabetes, which ship with scikit-learn, mnist,
    fashion_mnist, kmnist or emnist, or a file .npz or .csv."""
    data_dir: Path | None = None
    """A folder with the four idx files of mnist and its kind, gzipped or not, or with what `jaxmlp
    data prepare` prepared; by default what it prepared in its own default folder."""
    target: str | None = None
    """The column of a .csv file to predict; by default the last."""
    targets: Literal["auto", "classes", "numbers"] = "auto"
    """What a file's targets are: by default words and integers are classes, others numbers."""
    validation_fraction: float = 0.0
    """Put aside this part of the training examples, stratified by class, for validation."""
    validation_file: Path | None = None
    """Or take them from this file, of the same kind."""
    test_file: Path | None = None
    """Take the test examples from this file, of the same kind."""
    standardize: bool = False
    """Bring every input to mean 0 and standard deviation 1, by the training part's figures, which
    are kept with the model."""
    class_weight: tuple[str, ...] = ()
    """`balanced`, or CLASS=WEIGHT for some classes: examples of a class count so much."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of each hidden layer; give the option without a number for none."""
    activation: tuple[str, ...] = ("sigmoid",)
    """The hidden layers' activation, one for all or one for each: identity, sigmoid, tanh, relu,
    leaky_relu, elu, softplus, silu, gelu or gelu_tanh."""
    loss: str | None = None
    """For classes softmax_cross_entropy, the default, or sigmoid_binary_cross_entropy or
    squared_error, which take them as one-hot rows; for numbers squared_error, the default, or
    poisson."""
    bias: bool = True
    """Whether the layers have biases."""
    optimizer: str = "adam"
    """sgd, momentum, nesterov, adagrad, adam, adamw, amsgrad, lamb, lion, nadam, nadamw, radam or
    rmsprop."""
    optimizer_settings: tuple[str, ...] = ()
    """NAME=NUMBER for some of its settings by optax's names, such as b1=0.8."""
    learning_rate: float = 0.005
    """The largest learning rate."""
    schedule: str = "cosine"
    """cosine or linear, from the learning rate down to 0 over all steps, one_cycle, or constant."""
    warmup: float = 0.0
    """The fraction of all steps in which the rate grows to the schedule's."""
    batch_size: int = 32
    """Examples a step; with --private, as many as are expected in it."""
    epochs: int = 20
    """How often all examples are seen."""
    weight_decay: float | None = None
    """Of the weights, not the biases; by default the optimiser's own (adamw and nadamw 1e-4, lion
    1e-3, others none)."""
    clip_norm: float | None = None
    """Scale a batch's gradient down to this norm where it is larger; with --private, that of every
    example."""
    max_norm: float | None = None
    """Scale the incoming weights of a hidden unit down to this norm."""
    dropout: tuple[float, ...] = ()
    """The fraction of units dropped in the hidden layers, one for all or one for each."""
    input_dropout: float = 0.0
    """The fraction of inputs dropped."""
    label_smoothing: float = 0.0
    """Mix the targets with the uniform distribution by this much, for a cross-entropy."""
    average_decay: float | None = None
    """Save and evaluate the average of the weights, by this much less for each step back."""
    patience: int | None = None
    """Stop when the monitored figure has not improved for so many epochs, and keep the best."""
    monitor: str = "validation_loss"
    """The figure that patience watches: validation_loss or validation_accuracy."""
    private: bool = False
    """Train by DP-SGD: with differential privacy for the training examples. Needs --clip-norm,
    --delta, and --noise-multiplier or --epsilon, and `pip install "jaxmlp[privacy]"`."""
    noise_multiplier: float | None = None
    """Of the clip norm, the standard deviation of the noise on a private step's sum."""
    epsilon: float | None = None
    """What a private training may spend in all its epochs: the noise is solved for."""
    delta: float | None = None
    """The chance that the guarantee leaves open, well below 1 over the number of examples."""
    unprotected_figures: bool = False
    """Record loss, accuracy, gradient norm and clipped fraction of the training examples in a
    private training, too: the guarantee does not cover them."""
    seed: int = 0
    """Of the initial parameters, the order of the examples, the masks and the split; a private
    training draws its batches, masks and noise from a secret of its own."""
    seeds: int = 1
    """Train so many networks, with this seed and the next ones; report mean and deviation."""
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    """Of the products and the saved model; float64 needs JAX_ENABLE_X64=1 in the environment."""
    precision: str | None = None
    """Of the matrix products: default, high, highest, or a name such as TF32_TF32_F32."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    output: Path | None = None
    """The run's folder, new or empty; by default runs/<dataset>-<n>."""
    resume: bool = False
    """Go on with the run in --output from its last checkpoint, or start it where there is none. Its
    options need not be given again."""
    keep: int = 3
    """How many checkpoints are kept."""
    keep_epochs: int | None = None
    """Keep the parameters after every so many epochs, in the run's epochs/: `jaxmlp influence`
    reads them."""
    checkpoint_every: float | None = None
    """Seconds from one checkpoint to the next; by default as many as keep their cost below a
    fiftieth of the running time, with the first after 8."""
    pictures: bool = True
    """Draw learning curves, confusion matrix and so on into the run's folder."""
    quiet: bool = False
    """Print the last line only."""
    compile_cache: Path | None = None
    """Keep compiled programs in this folder, for the next run."""


_OF_ONE_PROCESS = (
    "output", "resume", "keep", "checkpoint_every", "pictures", "quiet", "compile_cache", "device",
)  # fmt: skip
OF_THE_TRAINING = [
    field.name for field in dataclasses.fields(Train) if field.name not in _OF_ONE_PROCESS
]


def resumed_options(arguments: list[str]) -> dict[str, Any]:
    """Return the default options for tyro where a run is to be resumed: those of the run."""
    if arguments[:1] != ["train"] or "--resume" not in arguments:
        return {}
    outputs = [value for name, value in zip(arguments, arguments[1:], strict=False)
               if name == "--output"]  # fmt: skip
    outputs += [
        word.removeprefix("--output=") for word in arguments if word.startswith("--output=")
    ]
    if not outputs:
        return {}
    with bad_input():
        saved = runs.training_options(Path(outputs[-1]))
        return {} if saved is None else {"default": saved_options(Path(outputs[-1]), saved)}


def saved_options(run: Path, saved: dict[str, Any]) -> Train:
    """Return the options that a run was begun with, as config.json has them.

    Raises:
        ValueError: One of them is of another type.
    """
    types, options = get_type_hints(Train), {}
    for name in OF_THE_TRAINING:
        if name not in saved:
            continue
        value = saved[name]
        value = tuple(value) if isinstance(value, list) else value
        value = Path(value) if isinstance(value, str) and Path in get_args(types[name]) else value
        if not _is_of_type(value, types[name]):
            raise ValueError(
                f"{run / runs.CONFIG}: not a run's configuration: training.{name} is "
                f"{saved[name]!r:.60}"
            )
        options[name] = value
    return Train(**options)


def _is_of_type(value: Any, hint: Any) -> bool:
    """Tell whether a value is of one of the types that options have."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(x, arguments[0]) for x in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
