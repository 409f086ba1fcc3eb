"""The settings in a JSON file of a model, read by a table: checked, defaults filled in, renamed."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from convert.engine.quantized import ADVICE

_QUANTIZATION = "quantization_config"


class Part(NamedTuple):
    """One JSON file, or one object in it.

    A setting that a file leaves out has the default of the library that wrote it. A setting that
    we do not implement is refused: it would give other numbers without a word.

    Attributes:
        folder: Where the file lies; empty if the weights are beside it.
        file: Its name.
        classes: What its class, or type of model, may be.
        settings: Their name -> our name and their default.
        fixed: Their name -> the only value that we implement, which is their default unless it must
            be given (`required`).
        unread: Settings that change no number of ours.
        required: Of `fixed`, those whose default there is another value.
        choices: Their name -> the values that it may have.
        check: Says of our values what cannot be used, where each alone could be.
        strict: Whether a setting that is none of these is refused; transformers' files hold many
            that no network reads.
    """

    folder: str
    file: str
    classes: tuple[str, ...]
    settings: dict[str, tuple[str, Any]]
    fixed: dict[str, Any]
    unread: tuple[str, ...] = ()
    required: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    choices: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    check: Callable[[dict[str, Any]], list[str]] = lambda values: []
    strict: bool = True

    def read(
        self, data: Mapping[str, Any], problems: list[str], where: str | None = None
    ) -> dict[str, Any]:
        """The settings by our names.

        Args:
            data: Content of the file.
            problems: Grows by everything that cannot be used.
            where: What to call the file; its path from the model's folder by default.
        """
        where = where or f"{self.folder}/{self.file}".lstrip("/")
        problems += self._unimplemented(data, where)
        values, usable = {}, True
        for theirs, (mine, default) in self.settings.items():
            value = data.get(theirs, default)
            whole = isinstance(default, int) and isinstance(value, float) and value.is_integer()
            values[mine] = int(value) if whole else value
            choices = self.choices.get(theirs)
            if not _alike(values[mine], default) or (choices and values[mine] not in choices):
                advice = f"; it must be {' or '.join(choices)}" if choices else ""
                problems.append(f"{where}: {theirs} cannot be {values[mine]!r}{advice}")
                values[mine], usable = default, False
        problems += [f"{where}: {fault}" for fault in self.check(values)] if usable else []
        return values

    def _unimplemented(self, data: Mapping[str, Any], where: str) -> list[str]:
        found = []
        if given := data.get(_QUANTIZATION):
            method = given.get("quant_method") if isinstance(given, dict) else None
            found.append(
                f"{where}: {_QUANTIZATION} says that the weights are quantized by "
                f"{method or 'a method without a name'}; {ADVICE}"
            )
        for name, value in self.fixed.items() | self.required.items():
            given = data.get(name, None if name in self.required else value)
            if given != value:
                found.append(f"{where}: {name} is {given!r}; only {value!r} is implemented")
        known = {*self.settings, *self.fixed, *self.required, *self.unread, _QUANTIZATION}
        return found + [
            f"{where}: {name} is not known here; a newer model?"
            for name in data
            if self.strict and name not in known and not name.startswith("_")
        ]


def _alike(value: Any, default: Any) -> bool:
    """Whether a value can stand where this default stands; real numbers are all above zero."""
    if isinstance(default, list):
        return isinstance(value, list) and bool(value) and all(_alike(item, 1) for item in value)
    if isinstance(default, bool | str):
        return type(value) is type(default)
    least = 0 if default == 0 else 1
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if default is None:
        return value is None or whole
    real = isinstance(default, float) and isinstance(value, float)
    return whole or (real and 0 < value < math.inf)
