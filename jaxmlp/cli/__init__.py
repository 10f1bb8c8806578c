"""The `jaxmlp` command: it composes the rooms of the library and holds nothing else.

Exit status: 0 good, 1 a run or a check failed, 2 bad usage or bad input; 130 and 143 where Ctrl-C
or SIGTERM ended a run, saved.
"""

import io
import os
import sys
from typing import Annotated, Any

import tyro

import jaxmlp
from jaxmlp.cli.console import double_precision, fail, warn
from jaxmlp.cli.data import Data, List, Prepare, list_data, prepare_data
from jaxmlp.cli.influence import Influence, influence
from jaxmlp.cli.info import Info, info
from jaxmlp.cli.models import Evaluate, Export, Predict, evaluate, export, predict
from jaxmlp.cli.options import Sweep, Train, resumed_options
from jaxmlp.cli.sweep import sweep
from jaxmlp.cli.train import train
from jaxmlp.cli.verify import Verify, verify
from jaxmlp.progress import say
from jaxmlp.training.models import is_double

_Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Influence, tyro.conf.subcommand("influence")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)

_COMMANDS = {
    Train: train,
    Sweep: sweep,
    Evaluate: evaluate,
    Predict: predict,
    Export: export,
    Influence: influence,
    Verify: verify,
    List: list_data,
    Prepare: prepare_data,
    Info: info,
}


def _in_float64(command: Any) -> bool:
    """Tell whether a command is about a model in float64."""
    if isinstance(command, (Train, Sweep)):
        return command.dtype == "float64"
    return isinstance(command, (Evaluate, Predict, Export, Influence)) and is_double(command.run)


def main(arguments: list[str] | None = None) -> None:
    """Run the `jaxmlp` command with these arguments, by default the process's, and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # where it is not UTF-8, no ± is no reason to end
        sys.stdout.reconfigure(errors="replace")
    try:
        _run(arguments)
    except KeyboardInterrupt:
        warn("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # nobody reads tyro's help any more, or what is wrong with the usage
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 until the process ends
        sys.exit(0 if {"-h", "--help"} & set(arguments) else 2)
    except OSError as error:  # of standard output: every other is caught where it arises
        fail(error, 1)


def _run(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        say(jaxmlp.__version__)
        return
    command: Any = tyro.cli(
        _Command,  # pyright: ignore[reportArgumentType]
        prog="jaxmlp",
        args=arguments,
        description="Multi-layer perceptrons in JAX, gradients derived by hand, and proved. "
        "`jaxmlp --version` prints the version.",
        config=(tyro.conf.OmitArgPrefixes,),
        **resumed_options(arguments),
    )
    if isinstance(command, Data):
        command = command.action
    with double_precision(_in_float64(command)):
        _COMMANDS[type(command)](command)
