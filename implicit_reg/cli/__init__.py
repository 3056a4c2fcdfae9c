"""The command line: one frozen dataclass for each command is its configuration, its flags and its JSON.

Nothing here imports JAX before the arguments are understood, so that `--help` is quick and so that what JAX reads from
the environment can still be set.
"""

from __future__ import annotations

import functools
import operator
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from implicit_reg.cli import _common
from implicit_reg.cli.compare import Compare
from implicit_reg.cli.diagnose import Diagnose
from implicit_reg.cli.doctor import Doctor
from implicit_reg.cli.inspect import Inspect
from implicit_reg.cli.reproduce import Reproduce
from implicit_reg.cli.sweep import Sweep, with_file
from implicit_reg.cli.train import Train
from implicit_reg.cli.verify import Verify

COMMANDS = {
    "verify": (Verify, "Show that each method follows its modified equation, with measured orders."),
    "train": (Train, "Train a model on real data with any method of the table."),
    "compare": (Compare, "Compare methods on equal terms: same seeds, same gradient budget."),
    "sweep": (Sweep, "Run a grid of trainings, or of your own function, into a folder that survives."),
    "inspect": (Inspect, "Look at curvature: spectrum, kind of point, flatness, surface."),
    "diagnose": (Diagnose, "Say what a training run is doing, with the evidence, and what to try next."),
    "reproduce": (Reproduce, "Run a published experiment again and judge its claim."),
    "doctor": (Doctor, "Measure whether this machine gives the same bits however a sweep is cut."),
}

# tyro keeps a line to itself where it does not begin with a letter.
DESCRIPTION = """What a finite step size, a penalty, a backstitch or a flood level does to training.

For example:
$ implicit-reg verify
$ implicit-reg train --data digits --method backstitch
$ implicit-reg compare --methods gd sam

Add --help to a command for its flags and more examples.
"""


def _command_type(arguments: Sequence[str]) -> Any:
    """The union of all commands; each describes itself in full in its own help, and in one line among the others."""
    chosen = arguments and arguments[0] in COMMANDS
    return functools.reduce(
        operator.or_,
        (
            Annotated[cls, tyro.conf.subcommand(name, prefix_name=False, description=None if chosen else line)]
            for name, (cls, line) in COMMANDS.items()
        ),
    )


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code (`_common` lists them)."""
    try:
        command = tyro.cli(
            _command_type(arguments),
            prog="implicit-reg",
            description=DESCRIPTION,
            args=list(arguments) or ["--help"],
            registry=_common.strict_numbers(),
            config=(tyro.conf.OmitArgPrefixes,),
        )
        if isinstance(command, Sweep) and command.config is not None:
            # Once more, on top of what the file says: a flag goes before it.
            command = tyro.cli(
                Sweep,
                prog="implicit-reg sweep",
                args=list(arguments)[1:],
                default=Sweep(config=command.config, **with_file(command)),
                registry=_common.strict_numbers(),
            )
    except _common.UsageError as error:
        print(_common.explain(error)[1], file=sys.stderr)
        return _common.EXIT_USAGE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _common.EXIT_USAGE
    return execute(command)


def execute(command: _common.Options) -> int:
    """Runs a parsed command; a user's mistake ends in one line and an exit code, not in a traceback."""
    try:
        _common.set_environment(command)
        return command.run()
    except BrokenPipeError:
        # The reader went away (`| head`): what was to be written to disk has been written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _common.EXIT_OK
    except BaseException as error:
        if command.debug:
            traceback.print_exc()
        code, message = _common.explain(error)
        print(message, file=sys.stderr)
        return code
