"""The commands by name, and the door that they share."""

import importlib
import sys
from collections.abc import Sequence

import minitrain
from minitrain.system.errors import SettingsError, did_you_mean
from minitrain.system.terminal import exit_code, warn

COMMANDS = {
    "train": "Train a network, and log how it went.",
    "descend": "Walk down any function, against its gradient.",
    "explain": "Work out one update of one weight, with its actual numbers.",
    "plot": "Draw the curves of some runs in one picture.",
    "landscape": "Draw the loss around the weights of a run, and on the way to them.",
}
"""What each command does; its code is the module of that name beside this one."""

EXAMPLES = (
    "train mnist-cnn --epochs 2",
    'descend "x**2 + 3*y**2" --start 3 4 --lr 0.1 --momentum 0 0.5',
    "explain runs/NAME --step 500 --parameter layers.0.weight --index 64 400",
    "plot runs/ONE runs/OTHER --output curves.png",
    "landscape runs/NAME",
)
"""One of each command, to copy."""


def main(arguments: Sequence[str] | None = None, program: str = "minitrain") -> int:
    """Run the command that the command line names.

    Args:
        arguments: The command and its arguments; by default those of the process.
        program: What stands before the command in its help.

    Returns:
        The exit code of the command, or 2 where none of that name is given.

    Raises:
        SystemExit: As `run` does.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in COMMANDS:
        return run(words[0], words[1:], f"{program} {words[0]}")
    return exit_code(lambda: _answer(words, program))


def run(command: str, arguments: Sequence[str], program: str) -> int:
    """Run one command.

    Args:
        command: Its name, a key of `COMMANDS`.
        arguments: The command line after its name.
        program: What it is called in its help.

    Returns:
        Its exit code. An error has been printed, with its traceback where it is a bug
        or `--debug` is among the arguments.

    Raises:
        SystemExit: With code 0 after `--help`, and with 2 where the command line cannot
            be read.
    """

    def work() -> int:
        module = importlib.import_module(f"minitrain.cli.{command}")
        return module.main(arguments, program)

    return exit_code(work, debug="--debug" in arguments)


def _answer(words: Sequence[str], program: str) -> int:
    """Answer a command line that has no command; return the exit code."""
    if not words:
        warn(usage(program))
        return SettingsError.exit_code
    if words[0] in ("--help", "-h"):
        print(usage(program))
    elif words[0] == "--version":
        print(f"minitrain {minitrain.__version__}")
    else:
        hint = did_you_mean(words[0], [*COMMANDS]) or f"; try {program} --help"
        raise SettingsError(f"there is no command {words[0]!r}{hint}")
    return 0


def usage(program: str) -> str:
    """The commands with a sentence and an example each, and how to ask for more."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            "From the gradient to MNIST: a minimal framework to train neural networks.",
            "",
            *(f"  {name:{width}}  {does}" for name, does in COMMANDS.items()),
            "",
            "For example:",
            "",
            *(f"  {program} {example}" for example in EXAMPLES),
            "",
            f"{program} COMMAND --help tells the options of a command, and "
            f"{program} --version\nwhich version this is.",
        ]
    )
