"""How the programs that work with a training config read their flags."""

import sys
from collections.abc import Callable, Sequence
from typing import Literal

from absl import app, flags
from ml_collections import config_flags

from tora2_jax.config.help import ASKS_FOR_HELP, help_text, unknown_fields
from tora2_jax.config.train import TrainConfig


def define_config() -> None:
    """Defines `--config FILE` and `--config.FIELD=VALUE`."""
    # The choices are checked with the rest of the config (`config.train.problems`).
    config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/, or FILE:ARGUMENT. It is a Python program and is run: read it before "
        "you use one of somebody else's.",
    )


def run(main: Callable[[list[str]], int], arguments: Sequence[str], description: str) -> None:
    """Reads the flags, runs `main` and ends the process with the code that it returns.

    Before that, `--help` prints all that can be set, with code 0, and what is wrong with a flag is
    told in words, with code 2.

    Args:
        main: Given what no flag takes.
        arguments: The command line, the program's name first.
        description: What `--help` begins with.
    """
    if ASKS_FOR_HELP.intersection(arguments):
        print(_help(list(arguments), description))
        sys.exit(0)
    app.run(main, argv=list(arguments), flags_parser=_parse)


def _help(arguments: list[str], description: str) -> str:
    rest = [argument for argument in arguments if argument not in ASKS_FOR_HELP]
    given = any(argument.startswith(("--config", "-config")) for argument in rest)
    if not given:
        source = "their defaults (with --config FILE: its values)"
        return help_text(description, TrainConfig(), source)
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].validators.clear()  # help needs no flag
    _parse(rest)
    return help_text(description, flags.FLAGS.config, "the values of this command line")


def _parse(arguments: list[str]) -> list[str]:
    if problems := unknown_fields(arguments):
        _refuse("\n".join(problems))
    try:
        rest = flags.FLAGS(arguments)
        getattr(flags.FLAGS.config, "stage", None)  # raises if the file could not be loaded
    except (flags.Error, AttributeError, ValueError, TypeError, KeyError, OSError) as error:
        _refuse(str(error.args[0] if isinstance(error, KeyError) else error))
    if len(rest) > 1:
        _refuse(f"{' '.join(rest[1:])}: not understood; a flag is written --NAME=VALUE")
    return rest


def _refuse(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.exit(2)
