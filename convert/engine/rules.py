"""The rule engine: one table of rules per model turns PyTorch tensors into ours, and back.

Strict both ways: a tensor that no rule takes, a parameter that nothing fills and a shape that does
not fit are collected and raised as one error. A plan is made from names, shapes and types alone, so
that models larger than the memory go through it array by array.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from convert.engine.finite import NonFiniteError, not_finite

_LISTED = 200  # problems in one message


class ConversionError(ValueError):
    """The tensors do not fit the model; the message lists every difference."""


def listing(source: Any, problems: list[str]) -> ConversionError:
    """Everything that is wrong with a source as one error."""
    return ConversionError(f"{source} cannot be converted:\n  {shown(problems)}")


def shown(problems: list[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    more = len(problems) - _LISTED
    return "\n  ".join([*problems[:_LISTED], *([f"... and {more} more"] if more > 0 else [])])


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


class Part(NamedTuple):
    """Some of the `count` equal chunks into which a tensor is cut along its first axis."""

    chunks: tuple[int, ...]
    count: int

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """These chunks, one after another. Raises ValueError if the tensor cannot be cut so."""
        pieces = np.split(tensor, self.count)
        return np.concatenate([pieces[chunk] for chunk in self.chunks])


class Rule(NamedTuple):
    """Tensors whose whole name matches `source` become the parameter `target`.

    `target` may refer to groups of `source`. The named group `layer` is the position on the leading
    axis of a parameter that stacks all layers. Groups are not nested; of a group that only chooses
    between spellings, `(?:a|b)`, the first is the one to write.

    With `part` it is only a part of the tensor, before `transform`; other rules with the same
    source take the rest, so that every chunk is used once. Such rules have no way back.
    """

    source: str
    target: str | None
    transform: Transform = COPY
    part: Part | None = None


def ignored(source: str) -> Rule:
    """Tensors that are known and carry nothing (counters, derived tables)."""
    return Rule(source, None)


class Piece(NamedTuple):
    """One PyTorch tensor of a parameter."""

    name: str
    layer: int | None  # its place on the leading axis; None: the whole parameter
    transform: Transform
    part: Part | None = None


class Spec(Protocol):
    """Anything that says how large and of which type an array is."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


Read = Callable[[Iterable[str]], Iterator[tuple[str, np.ndarray]]]


class _Place(NamedTuple):
    target: str | None  # None: ignored
    layer: int | None
    transform: Transform
    part: Part | None


def _places(rules: list[Rule], name: str) -> list[_Place]:
    """Where a tensor goes: one place, or one for each of its parts; none if no rule knows it."""
    places: list[_Place] = []
    for rule in rules:
        if places and rule.part is None:
            continue
        match = re.fullmatch(rule.source, name)
        if match is None:
            continue
        target = None if rule.target is None else match.expand(rule.target)
        layer = match.groupdict().get("layer")
        layer = None if layer is None else int(layer)
        places.append(_Place(target, layer, rule.transform, rule.part))
        if rule.part is None:
            break
    return places


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
    integers: dict[str, list[str]] = {}
    found: dict[str, dict[int | None, Piece]] = {path: {} for path in target}
    for name in sorted(tensors):
        spec, places = tensors[name], _places(rules, name)
        if any(place.target is None for place in places):
            continue
        if places and "float" not in str(spec.dtype):
            integers.setdefault(str(spec.dtype), []).append(name)
        if not places or any(place.target not in target for place in places):
            problems.append(f"extra: {name} {tuple(spec.shape)}")
            continue
        problems += _unused(name, places)
        for place in places:
            shape, pieces = tuple(target[place.target].shape), found[place.target]
            if not _fits(spec, place, shape):
                problems.append(
                    f"misshapen: {name} {tuple(spec.shape)} does not fit {place.target} {shape}"
                )
            elif place.layer in pieces:
                problems.append(f"repeated: {name} is the same as {pieces[place.layer].name}")
            pieces.setdefault(place.layer, Piece(name, *place[1:]))
    for path, pieces in found.items():
        problems += _gaps(path, tuple(target[path].shape), pieces, tensors)
    problems = [_integers(kind, names) for kind, names in integers.items()] + problems
    if problems:
        raise ConversionError(f"the weights do not fit this model:\n  {shown(problems)}")
    return {path: sorted(pieces.values(), key=_layer) for path, pieces in found.items()}


def known(rules: list[Rule]) -> Callable[[str], bool]:
    """Whether a name is one that the table takes or ignores."""
    return lambda name: bool(_places(rules, name))


def _integers(kind: str, names: list[str]) -> str:
    """Integers are never the values of a weight: somebody quantized it and has the scales."""
    return (
        f"integers: {len(names)} tensors are stored as {kind}, such as {names[0]}; are they "
        "quantized? Take the same model in bfloat16, float16 or float32"
    )


def _layer(piece: Piece) -> int:
    return -1 if piece.layer is None else piece.layer


def _unused(name: str, places: list[_Place]) -> list[str]:
    """Whether the parts of a tensor are the whole of it."""
    parts = [place.part for place in places if place.part is not None]
    if not parts:
        return []
    taken = sorted(chunk for part in parts for chunk in part.chunks)
    if {part.count for part in parts} == {len(taken)} and taken == list(range(len(taken))):
        return []
    return [f"cut: the parts {taken} of {name} are not all of it, each once"]


def _fits(spec: Spec, place: _Place, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape, laid out our way, has the shape that the parameter wants."""
    own = tuple(spec.shape)
    if place.part is not None:
        if not own or own[0] % place.part.count:
            return False
        own = (own[0] // place.part.count * len(place.part.chunks), *own[1:])
    hollow = np.broadcast_to(np.zeros((), np.int8), own)  # no memory, any shape
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

    Raises:
        NonFiniteError: names the tensors with values that are infinite or no number.
    """
    by_name = {piece.name: piece for piece in pieces}
    whole, faults = None, []
    for name, tensor in read(by_name):
        if fault := not_finite(tensor):
            faults.append(f"{name} {fault}")
            continue
        piece = by_name[name]
        if whole is None:
            whole = np.empty(shape, tensor.dtype)
        part = tensor if piece.part is None else piece.part.take(tensor)
        whole[... if piece.layer is None else piece.layer] = piece.transform.forward(part)
    if faults:
        raise NonFiniteError(faults)
    return whole


def assembled(
    pieces: Mapping[str, list[Piece]], shapes: Mapping[str, tuple[int, ...]], read: Read
) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter with its path, one after another; arguments are those of `assemble`.

    The largest come first: what the allocator keeps of one array then suffices for the next.

    Raises:
        NonFiniteError: behind the last parameter, naming all tensors whose values are not finite.
    """
    faults: list[str] = []
    for path in sorted(shapes, key=lambda path: -math.prod(shapes[path])):
        try:
            array = assemble(pieces[path], shapes[path], read)
        except NonFiniteError as error:
            faults += error.faults
        else:
            yield path, array
    if faults:
        raise NonFiniteError(faults)


def non_finite(faults: list[str]) -> ConversionError:
    """What is said of weights with which every video would be black."""
    return ConversionError(
        "weights that are not finite are not converted; was the training's loss NaN, or the file "
        f"saved in float16 from larger values?\n  {shown(sorted(faults))}"
    )


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
        raise ConversionError(
            f"cannot be exported, no tensor there is like it:\n  {shown(nameless)}"
        )
    return pieces


def disassemble(pieces: list[Piece], array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The PyTorch tensors of one parameter by name, one after another."""
    for piece in pieces:
        value = array if piece.layer is None else array[piece.layer]
        yield piece.name, np.ascontiguousarray(piece.transform.backward(value))


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
        lossy = rule.target is None or rule.part is not None
        template = None if lossy else _name(rule, path)
        if template is None:
            continue
        layers = range(shape[0]) if _LAYER in template else (None,)
        names = {layer: template.replace(_LAYER, str(layer)) for layer in layers}
        # A group of the rule may not match what stands in the path.
        if all(
            _places(rules, name) == [(path, layer, rule.transform, None)]
            for layer, name in names.items()
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
