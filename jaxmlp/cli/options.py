"""The options of `jaxmlp train` and `jaxmlp sweep`, given or read back from what was begun."""

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxmlp.cli.console import bad_input
from jaxmlp.training import runs, sweep_folder

REGRESSION = {"auto": None, "classes": False, "numbers": True}
"""What `targets` says → the `regression` of `load_dataset`."""


@dataclasses.dataclass
class Common:
    """The options of whatever trains: the problem, the network, and where the results go."""

    dataset: str = "digits"
    """The data: digits, iris, wine, breast_cancer or diabetes, which ship with scikit-learn, mnist,
    fashion_mnist, kmnist or emnist, or a file .npz or .csv, or a folder of files .npy."""
    data_dir: Path | None = None
    """A folder with the four idx files of mnist and its kind, gzipped or not, or with what `jaxmlp
    data prepare` prepared; by default what it prepared in its own default folder."""
    target: str | None = None
    """The column of a .csv file to predict; by default the last."""
    ignore: tuple[str, ...] = ()
    """Columns of a .csv file that are no inputs, such as names or numbers of its rows."""
    targets: Literal["auto", "classes", "numbers"] = "auto"
    """What a file's targets are: by default words and integers are classes, others numbers."""
    validation_fraction: float | None = None
    """Put aside this part of the training examples, stratified by class, for validation; by default
    none."""
    validation_file: Path | None = None
    """Or take them from this file, of the same kind."""
    test_file: Path | None = None
    """Take the test examples from this file, of the same kind."""
    standardize: bool = False
    """Bring every input to mean 0 and standard deviation 1, by the training part's figures, which
    are kept with the model."""
    standardize_targets: bool = False
    """Train on targets of mean 0 and standard deviation 1, by the training part's figures: for a
    regression whose numbers are large or small. The losses that are shown are of these; the saved
    model predicts the numbers as they were."""
    class_weight: tuple[str, ...] = ()
    """`balanced`, or CLASS=WEIGHT for some classes: examples of a class count so much."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of each hidden layer, a space between them; without a number there is none."""
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
    schedule: str = "cosine"
    """cosine or linear, from the learning rate down to 0 over all steps, one_cycle, or constant."""
    batch_size: int = 32
    """Examples a step; with --private, as many as are expected in it."""
    epochs: int = 20
    """How often all examples are seen."""
    patience: int | None = None
    """Stop when the monitored figure has not improved for so many epochs, and keep the best."""
    monitor: str = "validation_loss"
    """The figure that patience watches: validation_loss or validation_accuracy."""
    seed: int = 0
    """Of the initial parameters, the order of the examples, the masks and the split; a private
    training draws its batches, masks and noise from a secret of its own."""
    seeds: int = 1
    """Train so many networks, with this seed and the next ones; report mean and deviation."""
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    """Of the products and the saved model."""
    precision: str | None = None
    """Of the matrix products: default, high, highest, or a name such as TF32_TF32_F32."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    devices: int | None = None
    """On so many of them at once, by default on one, or on all of several processes: train gives
    each a part of every batch, whose size is then a multiple of it, sweep a part of the
    networks."""
    output: Path | None = None
    """The run's folder, new or empty; by default runs/<dataset>-<n>."""
    resume: bool = False
    """Go on with what is in --output from where it was saved last, or start it where there is
    nothing. Its options need not be given again."""
    pictures: bool = True
    """Draw learning curves, confusion matrix and so on into the run's folder."""
    quiet: bool = False
    """Print the last line only."""
    compile_cache: Path | None = None
    """Keep compiled programs in this folder, for the next run."""


@dataclasses.dataclass
class Train(Common):
    """Train a network on real data with the hand-derived gradient, and save it."""

    stream: bool = False
    """Leave the training inputs of a folder, or of an uncompressed .npz, on disk and read them as
    they are needed: they may be larger than the memory. Needs `pip install "jaxmlp[stream]"`."""
    shuffle: Literal["full", "chunks"] = "full"
    """The order of every epoch: a new one of all examples; or of chunks, up to 64 in a row, and of
    the examples of each 128 chunks: not as random, but faster to read from a disk."""
    learning_rate: float = 0.005
    """The largest learning rate."""
    warmup: float = 0.0
    """The fraction of all steps in which the rate grows to the schedule's."""
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
    keep: int = 3
    """How many checkpoints are kept."""
    keep_epochs: int | None = None
    """Keep the parameters after every so many epochs, in the run's epochs/: `jaxmlp influence`
    reads them. Those of standardized targets predict these."""
    checkpoint_every: float | None = None
    """Seconds from one checkpoint to the next; by default as many as keep their cost below a
    fiftieth of the running time, with the first after 8."""


@dataclasses.dataclass
class Sweep(Common):
    """Train many networks at once, each with its own settings, and keep the best.

    A number may be several, `0.001 0.01`, or a range to draw from, `0.001:0.1:log`. Without
    --samples every combination is tried; with it so many are drawn at random. Each is trained with
    every seed, and judged by the mean of --monitor.
    """

    validation_fraction: float | None = None
    """Put aside this part of the training examples, stratified by class, to judge settings by; by
    default a fifth where the data have no validation part of their own."""
    batch_size: int = 32
    """Examples a step."""
    monitor: str = "validation_loss"
    """The figure that settings are judged by: validation_loss or validation_accuracy."""
    seed: int = 0
    """Of the initial parameters, the order of the examples, the masks, the split and the draws."""
    seeds: int = 1
    """Train every setting with so many seeds, this one and the next."""
    output: Path | None = None
    """The sweep's folder, new or empty; by default runs/sweep-<dataset>-<n>."""
    pictures: bool = True
    """Draw the response surface, and for the best network learning curves and so on."""
    quiet: bool = False
    """Print the last two lines only."""
    learning_rate: tuple[str, ...] = ()
    """The largest learning rate; by default 0.005."""
    optimizer_settings: tuple[str, ...] = ()
    """NAME=NUMBER, NAME=NUMBER,NUMBER or NAME=LOW:HIGH for some settings of the optimiser, such as
    b1=0.8,0.9."""
    weight_decay: tuple[str, ...] = ()
    """Of the weights, not the biases; by default the optimiser's own."""
    dropout: tuple[str, ...] = ()
    """The fraction of units dropped in all hidden layers."""
    input_dropout: tuple[str, ...] = ()
    """The fraction of inputs dropped."""
    label_smoothing: tuple[str, ...] = ()
    """Mix the targets with the uniform distribution by this much, for a cross-entropy."""
    warmup: tuple[str, ...] = ()
    """The fraction of all steps in which the rate grows to the schedule's."""
    clip_norm: tuple[str, ...] = ()
    """Scale a batch's gradient down to this norm where it is larger."""
    max_norm: tuple[str, ...] = ()
    """Scale the incoming weights of a hidden unit down to this norm."""
    average_decay: tuple[str, ...] = ()
    """Evaluate and keep the average of the weights, by this much less for each step back."""
    scale: tuple[str, ...] = ()
    """Of the initial weights: times this."""
    space: Path | None = None
    """A file .toml or .json with more of these: name = number, [numbers], "LOW:HIGH:log", or a
    table with low, high and log. What is given here goes before it."""
    samples: int | None = None
    """Draw so many settings at random, instead of trying every combination."""
    halving: int | None = None
    """After 1, N, N² … epochs go on with the best 1/N of the settings that are trained together.
    Those trained longest then come first."""
    own_order: bool = False
    """Let the networks of each seed see the examples in an order of their own. Otherwise all see
    that of the first seed, which is faster."""
    members_per_pass: int | None = None
    """Train so many networks at a time; by default as many as there is memory for."""


_OF_ONE_PROCESS = (
    "output", "resume", "keep", "checkpoint_every", "quiet", "compile_cache", "device", "devices",
)  # fmt: skip
OF_THE_TRAINING = [
    field.name for field in dataclasses.fields(Train) if field.name not in _OF_ONE_PROCESS
]


_OF_ONE_SWEEP = (
    "output", "resume", "quiet", "compile_cache", "device", "devices", "space",
)  # fmt: skip
OF_THE_SWEEP = [
    field.name for field in dataclasses.fields(Sweep) if field.name not in _OF_ONE_SWEEP
]


MAY_CHANGE = ("stream", "pictures")
"""Options that make no other model: whoever goes on with a run may give others."""


def given(options: Common, names: list[str]) -> dict[str, Any]:
    """Return the options of these names that must be the same in several processes."""
    return {name: getattr(options, name) for name in names if name != "data_dir"}


def kept(options: Common, names: list[str]) -> dict[str, Any]:
    """Return the options of these names as a file keeps them: paths as text."""
    values = {name: getattr(options, name) for name in names}
    return {name: str(x) if isinstance(x, Path) else x for name, x in values.items()}


def resumed_options(arguments: list[str]) -> dict[str, Any]:
    """Return the default options for tyro where a run or sweep is to be resumed: its own."""
    if arguments[:1] not in (["train"], ["sweep"]) or "--resume" not in arguments:
        return {}
    outputs = [value for name, value in zip(arguments, arguments[1:], strict=False)
               if name == "--output"]  # fmt: skip
    outputs += [
        word.removeprefix("--output=") for word in arguments if word.startswith("--output=")
    ]
    if not outputs:
        return {}
    with bad_input():
        if arguments[0] == "sweep":
            saved = sweep_folder.read_sweep(Path(outputs[-1]))
            return {} if saved is None else {"default": saved_sweep(Path(outputs[-1]), saved)}
        saved = runs.training_options(Path(outputs[-1]))
        return {} if saved is None else {"default": saved_options(Path(outputs[-1]), saved)}


def saved_sweep(folder: Path, saved: dict[str, Any]) -> Sweep:
    """Return the options that a sweep was begun with, as sweep.json has them.

    Raises:
        ValueError: One of them is of another type.
    """
    return _typed(Sweep, OF_THE_SWEEP, saved["options"], folder / sweep_folder.SWEEP, "options")


def saved_options(run: Path, saved: dict[str, Any]) -> Train:
    """Return the options that a run was begun with, as config.json has them.

    Raises:
        ValueError: One of them is of another type.
    """
    return _typed(Train, OF_THE_TRAINING, saved, run / runs.CONFIG, "training")


def _typed(kind: Any, names: list[str], saved: dict[str, Any], path: Path, part: str) -> Any:
    """Return the options of a kind that a part of a file of JSON holds under these names.

    Raises:
        ValueError: One of them is of another type.
    """
    types, options = get_type_hints(kind), {}
    for name in names:
        if name not in saved:
            continue
        value = saved[name]
        value = tuple(value) if isinstance(value, list) else value
        value = Path(value) if isinstance(value, str) and Path in get_args(types[name]) else value
        if not _is_of_type(value, types[name]):
            raise ValueError(
                f"{path}: not a run's configuration: {part}.{name} is {saved[name]!r:.60}"
            )
        options[name] = value
    return kind(**options)


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
