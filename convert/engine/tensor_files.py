"""Files of PyTorch tensors as people hold them: safetensors, sharded or not, and safe pickles."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from convert.engine import pickles, quantized, weight_places
from convert.engine.weight_places import SourceError
from tora2_jax.system.unusable_file import why_unusable

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
# What torch.compile, FSDP and DeepSpeed put into the names of what they wrap, at any depth.
_MARKERS = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    stored: str  # its name in the file


class TensorFiles:
    """The tensors of one model by name. A file is open only while it is read from.

    Args:
        path: One file, or a folder; see `weight_places.find`. Pickles are read with weights-only
            loading.

    Attributes:
        specs: Shape and type of every tensor.
        notes: What the user should know of what was read.

    Raises:
        SourceError: lists every file that is missing, damaged or quantized.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        files, promised, notes = weight_places.find(path)
        problems: list[str] = []
        self.specs: dict[str, TensorSpec] = {}
        self.notes = list(notes)
        for file in files:
            try:
                found = _specs(file)
            except SourceError as error:
                problems += error.problems
                continue
            problems += [f"{file}: repeats {name}" for name in found.keys() & self.specs.keys()]
            self.specs |= found
        if not problems and promised is not None:
            problems += [f"{path}: no file holds {name}" for name in promised - self.specs.keys()]
        if not problems and not self.specs:
            problems.append(f"{path}: holds no tensors")
        if how := quantized.by_names(self.specs):
            problems = [f"{path}: {how}"]
        if problems:
            raise SourceError(sorted(problems))
        self._take_off_markers(path)

    def _take_off_markers(self, path: Path) -> None:
        found = {match[1] for name in self.specs for match in _MARKERS.finditer(name)}
        if found:
            plain = {_MARKERS.sub("", name): spec for name, spec in self.specs.items()}
            if len(plain) != len(self.specs):
                raise SourceError([f"{path}: has tensors that differ only in {sorted(found)}"])
            self.specs = plain
            self.notes.append(f"{path}: left out of the names: {', '.join(sorted(found))}")

    def rename(self, old: str, new: str) -> None:
        """Puts `new` in place of `old` at the beginning of every name that begins with it."""
        self.specs = {
            new + name[len(old) :] if name.startswith(old) else name: spec
            for name, spec in self.specs.items()
        }

    def strip(self, known: Callable[[str], bool]) -> None:
        """Takes off what all names begin with, up to a dot, if more of them are known without it.

        Args:
            known: Whether the network has a tensor of this name.
        """
        best, most = "", sum(map(known, self.specs))
        for prefix in _common_prefixes(self.specs):
            count = sum(known(name[len(prefix) :]) for name in self.specs)
            if count > most:
                best, most = prefix, count
        if best:
            self.rename(best, "")
            self.notes.append(f"taken off the names of all tensors: {best}")

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The named tensors, file by file."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.specs[name].file, []).append(name)
        for file, wanted in by_file.items():
            if not _is_safetensors(file):
                tensors = pickles.read(file)
                for name in wanted:
                    yield name, pickles.as_numpy(tensors[self.specs[name].stored])
                continue
            with safe_open(file, "numpy") as opened:
                for name in wanted:
                    yield name, opened.get_tensor(self.specs[name].stored)

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(_bytes(spec) for spec in self.specs.values())


def _common_prefixes(names: Iterable[str]) -> Iterator[str]:
    """What all names begin with up to a dot, the shortest first."""
    prefix = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            return
        prefix += f"{parts[0]}."
        yield prefix


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize


def _is_safetensors(file: Path) -> bool:
    """By the suffix; by the beginning where that says nothing."""
    if file.suffix in (".safetensors", ".sft"):
        return True
    if file.suffix in weight_places.PICKLES:
        return False
    with file.open("rb") as opened:
        return opened.read(9)[8:] == b"{"


def _specs(file: Path) -> dict[str, TensorSpec]:
    if reason := why_unusable(file):
        raise SourceError([f"{file}: {reason}"])
    if file.suffix == ".onnx":
        raise SourceError([f"{file}: is an ONNX model; only `convert arcface` reads those"])
    if not _is_safetensors(file):
        return {
            name: TensorSpec(
                tuple(tensor.shape),
                pickles.as_numpy(tensor[:0] if tensor.ndim else tensor).dtype,
                file,
                name,
            )
            for name, tensor in pickles.read(file).items()
        }
    try:
        with safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            types = {name: part.get_dtype() for name, part in slices.items()}
            fault = quantized.by_names(types)
            fault = fault or quantized.by_types(set(types.values()) - _DTYPES.keys())
            if fault:
                raise SourceError([f"{file}: {fault}"])
            return {
                name: TensorSpec(tuple(part.get_shape()), _DTYPES[types[name]], file, name)
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise SourceError(
            [f"{file}: is not a whole safetensors file ({error}); download it again"]
        ) from error
