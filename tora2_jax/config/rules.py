"""What the value of a setting must be, said beside the field: `steps: int = positive(15_000)`.

What depends on several settings is checked where they meet (`config.train.problems`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Rule(NamedTuple):
    """What a value must be."""

    holds: Callable[[Any], bool]
    says: str  # after the name of the field: "must be positive"


def checked(default: Any, holds: Callable[[Any], bool], says: str) -> Any:
    """A field of a dataclass with a rule; where a setting may be None, the rule is about others."""
    return field(default=default, metadata={"rule": Rule(holds, says)})


def positive(default: Any) -> Any:
    """A field whose value is above 0."""
    return checked(default, lambda value: value > 0, "must be positive")


def not_negative(default: Any) -> Any:
    """A field whose value is 0 or above."""
    return checked(default, lambda value: value >= 0, "must not be negative")


def share(default: Any) -> Any:
    """A field whose value is from 0 to 1."""
    return checked(default, lambda value: 0 <= value <= 1, "must be between 0 and 1")


def regex(default: Any) -> Any:
    """A field that holds a regular expression."""
    return checked(default, _compiles, "is no regular expression")


def pair(default: Any, holds: Callable[[Any, Any], bool], says: str) -> Any:
    """A field of two numbers."""

    def fits(value: Any) -> bool:
        return isinstance(value, (tuple, list)) and len(value) == 2 and holds(*value)

    return checked(default, fits, says)


def _compiles(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def broken_rules(config: Any, path: str = "config") -> Iterator[str]:
    """What is wrong with single fields of a config and of those below it, one line each."""
    hints = get_type_hints(type(config))
    for item in fields(config):
        value, hint, name = getattr(config, item.name), hints[item.name], f"{path}.{item.name}"
        if is_dataclass(value):
            yield from broken_rules(value, name)
        elif get_origin(hint) is Literal and value not in get_args(hint):
            yield f"{name} must be one of {', '.join(map(str, get_args(hint)))}"
        elif (rule := item.metadata.get("rule")) and value is not None and not rule.holds(value):
            yield f"{name} {rule.says}" + " or None" * (NoneType in get_args(hint))
