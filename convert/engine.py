"""The rule engine: one table of rules per model turns PyTorch tensors into ours, and back.

Strict both ways: a tensor that no rule takes, a parameter that nothing fills and a shape that does
not fit are collected and raised as one error.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


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
    axis of a parameter that stacks all layers.
    """

    source: str
    target: str | None
    transform: Transform = COPY


def ignored(source: str) -> Rule:
    """Tensors that are known and carry nothing (counters, derived tables)."""
    return Rule(source, None)


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


def convert(
    rules: list[Rule], tensors: Mapping[str, np.ndarray], target: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """PyTorch tensors -> parameters by path, each in the dtype it came with.

    Args:
        rules: The table of the model; the first rule that matches a name takes it.
        tensors: PyTorch tensors by name.
        target: Shapes of the parameters by path (anything with `.shape`).

    Returns:
        One array for every path of `target`.

    Raises:
        ConversionError: names everything that is missing, extra or misshapen.
    """
    problems: list[str] = []
    found: dict[str, dict[int | None, np.ndarray]] = {}
    for name in sorted(tensors):
        place = _place(rules, name)
        if place is None:
            continue
        if place is False or place.target not in target:
            problems.append(f"extra: {name} {tuple(tensors[name].shape)}")
            continue
        shape = tuple(target[place.target].shape)
        expected = shape if place.layer is None else shape[1:]
        try:
            value = place.transform.forward(tensors[name])
        except ValueError:
            value = tensors[name]
        if tuple(value.shape) != expected or (place.layer or 0) >= (shape[0] if shape else 1):
            found_shape = tuple(tensors[name].shape)
            problems.append(f"misshapen: {name} {found_shape} does not fit {place.target} {shape}")
            continue
        found.setdefault(place.target, {})[place.layer] = value
    arrays = {path: _assemble(path, target[path], found.get(path), problems) for path in target}
    if problems:
        listing = "\n  ".join(problems[:200])
        raise ConversionError(f"the weights do not fit this model:\n  {listing}")
    return arrays


def _assemble(path: str, spec, pieces: dict | None, problems: list[str]) -> np.ndarray | None:
    if not pieces:
        problems.append(f"missing: {path} {tuple(spec.shape)}")
        return None
    if None in pieces:
        return np.ascontiguousarray(pieces[None])
    absent = sorted(set(range(spec.shape[0])) - set(pieces))
    if absent:
        problems.append(f"missing: {path}, layers {', '.join(map(str, absent))}")
        return None
    return np.stack([pieces[layer] for layer in range(spec.shape[0])])


def export(
    rules: list[Rule], arrays: Mapping[str, np.ndarray], names: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """Parameters by path -> PyTorch tensors; the inverse of `convert`.

    Args:
        rules: The table of the model.
        arrays: Parameters by path.
        names: The PyTorch names wanted (values are not read).

    Raises:
        ConversionError: names every tensor that no parameter provides.
    """
    tensors, problems = {}, []
    for name in names:
        place = _place(rules, name)
        if place is None:
            continue
        if place is False or place.target not in arrays:
            problems.append(f"missing: {name}")
            continue
        value = arrays[place.target]
        value = value if place.layer is None else value[place.layer]
        tensors[name] = np.ascontiguousarray(place.transform.backward(value))
    if problems:
        raise ConversionError("cannot be exported:\n  " + "\n  ".join(problems))
    return tensors
