"""What the API reference says of fields, beyond what griffe reads from the source.

Settings and results say in comments what a field means: at the end of its last line, or on lines of
their own above it. This extension makes the `Attributes:` of a class of them. It gives named tuples
their signature, and `steps: int = positive(15_000)` the default 15000 and "(above 0)". mkdocs.yml
names this file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import griffe

# Functions whose first argument is the default of a field (config/rules.py), and what they ask.
_RULES = {
    "positive": "(above 0)",
    "not_negative": "(0 or above)",
    "share": "(0 to 1)",
    **dict.fromkeys(("regex", "pair", "checked", "_part"), ""),
}
_AT_THE_END = re.compile(r"\s{2}# (.*)$")
_ABOVE = re.compile(r"^\s+# (.*)$")
_KIND = griffe.ParameterKind.positional_or_keyword


class Fields(griffe.Extension):
    """Defaults, comments and signatures of dataclasses and named tuples."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Replaces the call that holds a default by the default."""
        if isinstance(attr.value, griffe.ExprCall) and attr.value.canonical_name in _RULES:
            attr.extra["field"]["rule"] = _RULES[attr.value.canonical_name]
            attr.value = attr.value.arguments[0]

    def on_class(self, *, cls: griffe.Class, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Adds the section, unless the docstring has one, and the signature of a named tuple."""
        fields = {
            name: field
            for name, field in cls.attributes.items()
            if field.annotation is not None and "property" not in field.labels
        }
        if "NamedTuple" in map(str, cls.bases):
            cls.set_member("__init__", _made_of(fields))
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        assert isinstance(cls.filepath, Path)  # namespace packages have several, classes do not
        lines = loader.lines_collection[cls.filepath]
        rows = [
            f"    {name}: {told}" for name, field in fields.items() if (told := says(field, lines))
        ]
        if rows:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)


def says(field: griffe.Attribute, lines: Sequence[str]) -> str:
    """The comment of a field in the lines of its file, and its rule; empty if it has neither."""
    first, last = field.lineno or 1, field.endlineno or 1
    above: list[str] = []
    while found := _ABOVE.match(lines[first - 2 - len(above)]):
        above.insert(0, found[1])
    beside = _AT_THE_END.search(lines[last - 1])
    comment = beside[1] if beside else " ".join(above)
    return f"{comment} {field.extra['field'].get('rule', '')}".strip()


def _made_of(fields: dict[str, griffe.Attribute]) -> griffe.Function:
    parameters = [griffe.Parameter("self", kind=_KIND)]
    for name, field in fields.items():
        parameters.append(
            griffe.Parameter(name, annotation=field.annotation, kind=_KIND, default=field.value)
        )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
