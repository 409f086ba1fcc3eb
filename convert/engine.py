"""The rule engine: one table of rules per model turns PyTorch tensors into ours, and back.

Strict both ways: a tensor that no rule takes, a parameter that nothing fills and a shape that does
not fit are collected and raised as one error. A plan is made from names, shapes and types alone, so
that models larger than the memory go through it array by array.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

_LISTED = 200  # problems in one message


class ConversionError(ValueError):
    """The tensors do not fit the model; the message lists every difference."""


class Transform(NamedTuple):
    """How one tensor is laid out there and here, as a pair of inverse functions."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


def permutation(*order: int) -> Transform:
    """A transposition of axes."""
    inverse = tuple(int(axis) for axis in np.argsort(order))
    return Transform(lambda x: np.transpose(x, order), lambda x: np.transpose(x, inverse))


COPY = Transform(lambda x: x, lambda x: x)
LINEAR = permutation(1, 0)  # [out, in] -> [in, out]
CONV1D = permutation(2, 1, 0)  # [out, in, k] -> [k, in, out]
CONV2D = permutation(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
CONV3D = permutation(2, 3, 4, 1, 0)  # [out, in, t, h, w] -> [t, h, w, in, out]


class Rule(NamedTuple):
    """Tensors whose whole name matches `source` become the parameter `target`.

    `target` may refer to groups of `source`. The named group `layer` is the position on the leading
    axis of a parameter that stacks all layers. Groups are not nested; of a group that only chooses
    between spellings, `(?:a|b)`, the first is the one to write.
    """

    source: str
    target: str | None
    transform: Transform = COPY


def ignored(source: str) -> Rule:
    """Tensors that are known and carry nothing (counters, derived tables)."""
    return Rule(source, None)


class Piece(NamedTuple):
    """One PyTorch tensor of a parameter."""

    name: str
    layer: int | None  # its place on the leading axis; None: the whole parameter
    transform: Transform


class Spec(Protocol):
    """Anything that says how large and of which type an array is."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


Read = Callable[[Iterable[str]], Iterator[tuple[str, np.ndarray]]]


class _Place(NamedTuple):
    target: str
    layer: int | None
    transform: Transform


def _place(rules: list[Rule], name: str) -> _Place | bool | None:
    """Where a tensor goes; None if it is ignored, False if no rule knows it."""
    for rule in rules:
        match = re.fullmatch(rule.source, name)
        if match is None:
            continue
        if rule.target is None:
            return None
        layer = match.groupdict().get("layer")
        target = match.expand(rule.target)
        return _Place(target, None if layer is None else int(layer), rule.transform)
    return False


def plan(
    rules: list[Rule], tensors: Mapping[str, Spec], target: Mapping[str, Spec]
) -> dict[str, list[Piece]]:
    """Which PyTorch tensors make up each parameter; nothing is read.

    Args:
        rules: The table of the model; the first rule that matches a name takes it.
        tensors: Shapes and types of the PyTorch tensors by name.
        target: Shapes of the parameters by path.

    Returns:
        The pieces of every path of `target`, in the order of their layers.

    Raises:
        ConversionError: names everything that is missing, extra, repeated or misshapen.
    """
    problems: list[str] = []
    found: dict[str, dict[int | None, Piece]] = {path: {} for path in target}
    for name in sorted(tensors):
        place = _place(rules, name)
        if place is None:
            continue
        spec = tensors[name]
        if place is False or place.target not in target:
            problems.append(f"extra: {name} {tuple(spec.shape)}")
            continue
        shape, pieces = tuple(target[place.target].shape), found[place.target]
        if not _fits(spec, place, shape):
            problems.append(
                f"misshapen: {name} {tuple(spec.shape)} does not fit {place.target} {shape}"
            )
        elif place.layer in pieces:
            problems.append(f"repeated: {name} is the same as {pieces[place.layer].name}")
        pieces.setdefault(place.layer, Piece(name, place.layer, place.transform))
    for path, pieces in found.items():
        problems += _gaps(path, tuple(target[path].shape), pieces, tensors)
    if problems:
        listing = "\n  ".join(problems[:_LISTED])
        raise ConversionError(f"the weights do not fit this model:\n  {listing}")
    return {path: sorted(pieces.values(), key=_layer) for path, pieces in found.items()}


def _layer(piece: Piece) -> int:
    return -1 if piece.layer is None else piece.layer


def _fits(spec: Spec, place: _Place, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape, laid out our way, has the shape that the parameter wants."""
    hollow = np.broadcast_to(np.zeros((), np.int8), tuple(spec.shape))  # no memory, any shape
    try:
        laid_out = place.transform.forward(hollow).shape
    except ValueError:
        return False
    if place.layer is None:
        return laid_out == shape
    return laid_out == shape[1:] and place.layer < shape[0]


def _gaps(path: str, shape: tuple[int, ...], pieces: dict, tensors: Mapping) -> list[str]:
    if not pieces:
        return [f"missing: {path} {shape}"]
    types = {str(tensors[piece.name].dtype) for piece in pieces.values()}
    problems = []
    if len(types) > 1:
        problems.append(f"mixed: the layers of {path} are stored as {', '.join(sorted(types))}")
    if None not in pieces and (absent := sorted(set(range(shape[0])) - set(pieces))):
        problems.append(f"missing: {path}, layers {', '.join(map(str, absent))}")
    return problems


def assemble(pieces: list[Piece], shape: tuple[int, ...], read: Read) -> np.ndarray:
    """One parameter, in the dtype that its tensors came with.

    Args:
        pieces: From `plan`.
        shape: Of the parameter.
        read: Gives the named tensors, in any order; each is let go before the next.
    """
    by_name = {piece.name: piece for piece in pieces}
    whole = None
    for name, tensor in read(by_name):
        layer, value = by_name[name].layer, by_name[name].transform.forward(tensor)
        if whole is None:
            whole = np.empty(shape, tensor.dtype)
        whole[... if layer is None else layer] = value
    return whole


def convert(
    rules: list[Rule], tensors: Mapping[str, np.ndarray], target: Mapping[str, Spec]
) -> dict[str, np.ndarray]:
    """PyTorch tensors in memory -> parameters by path, each in the dtype it came with.

    Arguments and errors are those of `plan`.
    """

    def read(names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, tensors[name]) for name in names)

    pieces = plan(rules, tensors, target)
    return {path: assemble(pieces[path], tuple(target[path].shape), read) for path in target}


def plan_export(rules: list[Rule], arrays: Mapping[str, Spec]) -> dict[str, list[Piece]]:
    """The PyTorch tensors that each parameter becomes; the inverse of `plan`.

    Args:
        rules: The table of the model.
        arrays: Shapes of the parameters by path.

    Raises:
        ConversionError: names every parameter that the table has no name for.
    """
    pieces = {path: _pieces(rules, path, tuple(spec.shape)) for path, spec in arrays.items()}
    if nameless := [path for path, found in pieces.items() if not found]:
        listing = "\n  ".join(nameless[:_LISTED])
        raise ConversionError(f"cannot be exported, no tensor there is like it:\n  {listing}")
    return pieces


def disassemble(pieces: list[Piece], array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The PyTorch tensors of one parameter by name, one after another."""
    for name, layer, transform in pieces:
        value = array if layer is None else array[layer]
        yield name, np.ascontiguousarray(transform.backward(value))


def export(rules: list[Rule], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters in memory -> PyTorch tensors by name; errors are those of `plan_export`."""
    pieces = plan_export(rules, arrays)
    return {
        name: tensor
        for path, array in arrays.items()
        for name, tensor in disassemble(pieces[path], array)
    }


_GROUP = re.compile(r"\((\?P<layer>|\?:)?([^()]*)\)")
_LAYER = "\0"  # stands in a name where the number of the layer goes


def _pieces(rules: list[Rule], path: str, shape: tuple[int, ...]) -> list[Piece]:
    for rule in rules:
        template = None if rule.target is None else _name(rule, path)
        if template is None:
            continue
        layers = range(shape[0]) if _LAYER in template else (None,)
        names = {layer: template.replace(_LAYER, str(layer)) for layer in layers}
        # A group of the rule may not match what stands in the path.
        if all(
            _place(rules, name) == (path, layer, rule.transform) for layer, name in names.items()
        ):
            return [Piece(name, layer, rule.transform) for layer, name in names.items()]
    return []


def _name(rule: Rule, path: str) -> str | None:
    """The name from which the rule would make this path; `_LAYER` for the layer's number."""
    parts = re.split(r"\\(\d)", rule.target)
    pattern = "".join(
        f"(?P<group{part}>[^.]+)" if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, path)
    if match is None:
        return None
    number = 0

    def fill(group: re.Match) -> str:
        nonlocal number
        kind, body = group.groups()
        if kind == "?:":
            return body.split("|")[0]
        number += 1
        return _LAYER if kind else match[f"group{number}"]

    return re.sub(r"\\(.)", r"\1", _GROUP.sub(fill, rule.source))
