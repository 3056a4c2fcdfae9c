"""The command line: one frozen dataclass for each command is its configuration, its flags and its JSON.

Nothing here imports JAX before the arguments are understood, so that `--help` is quick and so that what JAX reads from
the environment can still be set.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import tyro

from implicit_reg.cli import _common
from implicit_reg.cli.compare import Compare
from implicit_reg.cli.train import Train
from implicit_reg.cli.verify import Verify

Command = (
    Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
    | Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
    | Annotated[Compare, tyro.conf.subcommand("compare", prefix_name=False)]
)

DESCRIPTION = """What a finite step size, a penalty, a backstitch or a flood level does to training.

implicit-reg verify                        every prediction against its iterates, with measured orders
implicit-reg train --data digits           train on real data with any method of the table
implicit-reg compare --methods gd sam      several methods, several seeds, equal gradient budget

Add --help to a command for its flags and examples.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code (`_common` lists them)."""
    try:
        command = tyro.cli(
            Command,  # type: ignore[arg-type]
            prog="implicit-reg",
            description=DESCRIPTION,
            args=list(arguments) or ["--help"],
            registry=_common.strict_numbers(),
            config=(tyro.conf.FlagConversionOff, tyro.conf.OmitArgPrefixes)[1:],
        )
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
