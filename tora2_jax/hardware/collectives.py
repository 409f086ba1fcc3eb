"""Which data a compiled program sends between devices, read from its optimized HLO text."""

import math
import re
from collections import Counter
from typing import NamedTuple

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(\S+) \(.*\) -> .* \{$")
# The shape of a result, one array or a tuple of them, then the operation.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\d*[a-z]*\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|called_computations|branch_computations|\w+_computation)="
    r"\{?((?:%[\w.-]+(?:, )?)+)\}?"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_LIMIT = re.compile(r" = s32\[\]\S* constant\((\d+)\)")


class Collective(NamedTuple):
    """One operation between devices."""

    kind: str
    shapes: tuple[str, ...]  # of the results on one device, such as bf16[1,2222,3072]
    size: int  # bytes of the results on one device; of a reduce-scatter, of what it sums
    times: int  # how often it runs in one call of the program
    source: str  # where it comes from, as JAX names it


def collectives(text: str) -> list[Collective]:
    """Every collective of a program, inside loops with the number of their rounds.

    Args:
        text: `compiled.as_text()`. A loop whose rounds the compiler does not know counts as one.
    """
    bodies = _computations(text)
    times = _executions(bodies, text)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            match = _INSTRUCTION.match(line)
            kind = match and match[2].removesuffix("-start")
            if kind not in _KINDS:
                continue
            shapes = _result_shapes(match[1], match[2])
            source = re.search(r'op_name="([^"]*)"', line)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # on TPU: with the slice that is kept of the sum
            size = sum(_bytes(*shape) for shape in shapes)
            if match[2].startswith("reduce-scatter"):
                size *= _group_size(line)
            names = tuple(f"{dtype}[{dimensions}]" for dtype, dimensions in shapes)
            found.append(Collective(kind, names, size, times[name], source[1] if source else ""))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = bodies.setdefault(match[1].lstrip("%"), [])
        else:
            lines.append(line)
    return bodies


def _executions(bodies: dict[str, list[str]], text: str) -> Counter:
    """How often each computation runs, from the entry on down."""
    entry = re.search(r"^ENTRY %?(\S+) ", text, re.MULTILINE)
    times: Counter = Counter()
    pending = [(entry[1], 1)] if entry else []
    while pending:
        name, count = pending.pop()
        times[name] += count
        for line in bodies.get(name, ()):
            rounds = _rounds(line, bodies)
            for called in _CALLED.findall(line):
                for child in called.split(", "):
                    pending.append((child.strip("% "), count * rounds))
    return times


def _group_size(line: str) -> int:
    """How many devices exchange with each other; 1 where that cannot be seen."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(tiled[1]) if tiled else 1


def _rounds(line: str, bodies: dict[str, list[str]]) -> int:
    """How often an instruction runs what it calls; 1 where that cannot be seen."""
    if trips := _TRIPS.search(line):
        return int(trips[1])
    condition = _CONDITION.search(line)
    lines = bodies.get(condition[1], []) if condition else []
    # A scan compares its counter, which starts at 0, with a constant.
    limits = [int(limit[1]) for limit in map(_LIMIT.search, lines) if limit]
    counted = any("compare(" in line and "direction=LT" in line for line in lines)
    return limits[0] if counted and len(limits) == 1 else 1


def _result_shapes(shape: str, operation: str) -> list[tuple[str, str]]:
    arrays = _ARRAY.findall(shape)
    if not operation.endswith("-start") or len(arrays) < 2:
        return arrays
    # An asynchronous operation returns its operands, then its results, then (on TPU) contexts.
    arrays = [array for array in arrays if array[0] not in ("u32", "s32") or array[1]]
    return arrays[len(arrays) // 2 :] if operation != "all-reduce-start" else arrays


def _bytes(dtype: str, dimensions: str) -> int:
    size = math.prod(int(length) for length in dimensions.split(",") if length)
    return size * _BYTES.get(dtype, 1)
