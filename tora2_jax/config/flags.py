"""How the programs that work with a training config read their flags."""

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from absl import app, flags
from ml_collections import config_flags

from tora2_jax.config.help import ASKS_FOR_HELP, help_text, unknown_fields
from tora2_jax.config.train import TrainConfig, problems

_ILLEGAL = re.compile(r"flag --([\w.]+)=(.*?): (.*)")
_NO_NUMBER = {
    "invalid literal for int": "is no whole number",
    "could not convert string to float": "is no number",
}


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


def run(
    main: Callable[[list[str]], int],
    arguments: Sequence[str],
    description: str,
    needed: Sequence[str] = ("config",),
) -> None:
    """Reads the flags, runs `main` and ends the process with the code that it returns.

    Before that, `--help` prints all that can be set, with code 0, and all that is wrong with the
    flags and the config is told in words, with code 2.

    Args:
        main: Given what no flag takes.
        arguments: The command line, the program's name first.
        description: What `--help` begins with.
        needed: Flags that have to be given.
    """
    if ASKS_FOR_HELP.intersection(arguments):
        print(_help(list(arguments), description))
        sys.exit(0)
    app.run(main, argv=list(arguments), flags_parser=lambda words: _parse(words, needed))


def _help(arguments: list[str], description: str) -> str:
    rest = [argument for argument in arguments if argument not in ASKS_FOR_HELP]
    given = any(argument.startswith(("--config", "-config")) for argument in rest)
    if not given:
        source = "their defaults (with --config FILE: its values)"
        return help_text(description, TrainConfig(), source)
    _parse(rest, needed=())
    return help_text(description, flags.FLAGS.config, "the values of this command line")


def _parse(arguments: list[str], needed: Sequence[str]) -> list[str]:
    """What no flag takes. All that is wrong is told at once, and the process ends."""
    found = [line for line in [_file_problem(arguments)] if line]
    known = _without_config(arguments) if found else arguments
    fields = unknown_fields(arguments)
    for flag in fields:
        known = _without(known, flag)
    rest, wrong = _read(known)
    config = flags.FLAGS.config if "config" in flags.FLAGS else None
    given = {_name(word) for word in arguments}
    missing = [
        f"--{name} is needed: {flags.FLAGS[name].help}" for name in needed if name not in given
    ]
    if "config" in given and not found and not wrong and not isinstance(config, TrainConfig):
        wrong = [f"--config: it makes {config!r}, which is no TrainConfig"]
    stray = [f"{word}: not understood; a flag is written --NAME=VALUE" for word in rest[1:]]
    if told := [*found, *fields.values(), *wrong, *missing, *stray]:
        told += problems(config) if isinstance(config, TrainConfig) else []
        sys.stderr.write("\n".join(dict.fromkeys(told)) + "\n")
        sys.exit(2)
    return rest


def _file_problem(arguments: Sequence[str]) -> str:
    """What hinders that the file of `--config` is run; empty if nothing does or none is named."""
    place = next((i for i, word in enumerate(arguments) if _name(word) == "config"), None)
    if place is None:
        return ""
    _, given, name = arguments[place].partition("=")
    if not given:
        name = "".join(arguments[place + 1 : place + 2])
    path = Path(name.split(":")[0])
    if not name or name.startswith("-"):
        return "--config: names no file; give one of configs/"
    if path.is_dir():
        return f"--config: {path} is a folder; give a file of configs/"
    if path.suffix != ".py":
        return (
            f"--config: {path} is no Python file; give one of configs/ (to go on with a run, the "
            "file that it began with)"
        )
    return "" if path.is_file() else f"--config: {path} is not there"


def _read(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What no flag takes, and what is wrong with the others, one line each."""
    wrong: list[str] = []
    while True:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # of an attempt before
        flags.FLAGS.unparse_flags()
        try:
            with _command_line(arguments):
                rest = flags.FLAGS(arguments)
            getattr(flags.FLAGS.config, "stage", None)  # raises if the file could not be loaded
            return rest, wrong
        except Exception as error:  # the file is a program, which may fail in any way
            line, fewer = _fault(error, arguments)
            wrong.append(line)
        if fewer == arguments:
            flags.FLAGS.mark_as_parsed()
            return arguments[:1], wrong
        arguments = fewer  # for what else is wrong


def _fault(error: Exception, arguments: list[str]) -> tuple[str, list[str]]:
    """An error of the flags in words, and the command line without what has caused it."""
    if isinstance(error, flags.UnrecognizedFlagError):
        line = f"--{error.flagname}: there is no such flag; see --help"
        return line, _without(arguments, error.flagname)
    illegal = _ILLEGAL.match(str(error)) if isinstance(error, flags.IllegalFlagValueError) else None
    if illegal is not None and illegal[1] != "config":
        return _in_words(*illegal.groups()), _without(arguments, illegal[1])
    if illegal is None and isinstance(error, flags.Error):
        return str(error), arguments
    return _failure(_first_cause(error)), _without_config(arguments)


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """ml_collections looks for fields that are set in `sys.argv`, whatever is parsed."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


def _in_words(name: str, value: str, reason: str) -> str:
    told = [words for start, words in _NO_NUMBER.items() if reason.startswith(start)]
    return f"--{name}={value}: {told[0] if told else reason}"


def _failure(error: BaseException) -> str:
    """Of the file that was run, with the line where it failed."""
    if isinstance(error, SyntaxError):
        return f"--config: {error.filename}, line {error.lineno}: {error.msg}"
    own = [at for at in traceback.extract_tb(error.__traceback__) if not _is_installed(at.filename)]
    where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    reason = str(error).replace("module 'config_config'", "the file")  # ml_collections' name of it
    return f"--config: {where}{type(error).__name__}: {reason}"


def _first_cause(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _is_installed(file: str) -> bool:
    """Whether a file of Python, of a library or this one runs the config, and is not part of it."""
    return file == __file__ or file.startswith("<") or "site-packages" in file


def _name(word: str) -> str:
    """Of the flag that a word of the command line sets."""
    return word.split("=")[0].lstrip("-") if word.startswith("-") else ""


def _without(arguments: list[str], name: str) -> list[str]:
    """The command line without a flag, however its value is written."""
    kept, skip = [], False
    for word in arguments:
        takes = _name(word) == name
        if not takes and not (skip and not word.startswith("-")):
            kept.append(word)
        skip = takes and "=" not in word
    return kept


def _without_config(arguments: list[str]) -> list[str]:
    """Without the config's file and its fields, which cannot be read without it."""
    fields = [_name(word) for word in arguments if _name(word).startswith("config.")]
    for name in ["config", *fields]:
        arguments = _without(arguments, name)
    return arguments
