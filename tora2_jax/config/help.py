"""What `--help` of programs that read a training config says, and what a mistyped field means."""

import difflib
import inspect
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from absl import flags

from tora2_jax.config.train import TrainConfig

ASKS_FOR_HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
_WIDTH = 48  # columns of a field with its value
_SET = re.compile(r"--?config\.([\w.]+)")


def help_text(description: str, config: TrainConfig, source: str) -> str:
    """Everything that can be set, with the values of a config.

    Args:
        description: Of the program; a module's docstring.
        config: From the file that the command line names, or the defaults.
        source: Where it is from, in words.
    """
    lines = [description.rstrip(), "", "flags:"]
    for name, flag in sorted(flags.FLAGS.flags_by_module_dict().items()):
        if "tora2_jax" in name:  # libraries have flags, too
            lines += [_aligned(f"--{own.name}={own.default}", own.help) for own in flag]
    lines += ["", f"fields of the config, with {source}:", *_field_lines(config, "config")]
    return "\n".join(lines)


def _field_lines(config: Any, path: str) -> Iterator[str]:
    told, hints = comments(type(config)), get_type_hints(type(config))
    for field in fields(config):
        value, name = getattr(config, field.name), f"{path}.{field.name}"
        if is_dataclass(value):
            yield from _field_lines(value, name)
            continue
        choices = get_args(hints[field.name]) if get_origin(hints[field.name]) is Literal else ()
        text = f"{' or '.join(map(str, choices))}; " if choices else ""
        yield _aligned(f"--{name}={value}", (text + told.get(field.name, "")).removesuffix("; "))


def _aligned(setting: str, text: str) -> str:
    return f"  {setting:{_WIDTH}} {text}".rstrip()


def comments(kind: type) -> dict[str, str]:
    """What the source says of the fields of a dataclass, beside or above them."""
    found, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"    # (.*)", line):
            above.append(match[1])
            continue
        if match := re.match(r"    (\w+): [^#]*(?:# (.*))?$", line):
            found[match[1]] = " ".join([*above, *([match[2]] if match[2] else [])])
        above = []
    return found


def known_fields(kind: type = TrainConfig) -> set[str]:
    """Paths of all fields that a config may have, as `optim.learning_rate`."""
    found = set()
    for name, hint in get_type_hints(kind).items():
        found.add(name)
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for part in parts:
            if isinstance(part, type) and is_dataclass(part):
                found |= {f"{name}.{below}" for below in known_fields(part)}
    return found


def unknown_fields(arguments: Sequence[str]) -> dict[str, str]:
    """Flag -> one line for each `--config.FIELD` of a command line that no config has."""
    known, problems = known_fields(), {}
    for argument in arguments:
        match = _SET.match(argument)
        if match is None or match[1] in known:
            continue
        near = _close(match[1], known)
        near = near or [path for path in sorted(known) if path.split(".")[-1] == match[1]]
        meant = f"; did you mean {', '.join(f'--config.{path}' for path in near)}?" if near else ""
        flag = f"config.{match[1]}"
        problems[flag] = f"--{flag}: there is no such field{meant or '; see --help'}"
    return problems


def _close(wanted: str, known: set[str]) -> list[str]:
    """Of the same folder of settings if it is one: `optim.lr` is not meant to be `optim`."""
    folder, _, name = wanted.rpartition(".")
    beside = [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == folder]
    if folder and beside:
        alike = difflib.get_close_matches(name, beside, n=1, cutoff=0.6) or _abbreviated(
            name, beside
        )
        return [f"{folder}.{found}" for found in alike]
    return difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)


def _abbreviated(name: str, names: list[str]) -> list[str]:
    """Those whose words begin with the letters of a name, as `lr` of `learning_rate`."""
    return [found for found in names if "".join(word[0] for word in found.split("_")) == name]
