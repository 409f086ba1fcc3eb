"""Files of PyTorch tensors as people hold them: safetensors, sharded or not, and safe pickles."""

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tora2_jax.error_text import first_line

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
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_PICKLES = (".bin", ".pt", ".pth", ".tar")  # the last as in "model.pth.tar"


class SourceError(ValueError):
    """Files that cannot be read; `problems` lists all that is wrong, each with its file."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path


class TensorFiles:
    """The tensors of one model by name. A file is open only while it is read from.

    Args:
        path: One file, or a folder: with an index of shards (`*.safetensors.index.json`), or with
            one safetensors file, or with pickles, which are read with weights-only loading.
        key: The entry of a pickle under which the tensors are; None if they are the pickle.
        wrappers: Entries under which a pickle may have the tensors; the first that is there.

    Attributes:
        specs: Shape and type of every tensor.

    Raises:
        SourceError: lists every file that is missing or damaged.
    """

    def __init__(self, path: str | Path, key: str | None = None, wrappers: tuple[str, ...] = ()):
        path, self._keys = Path(path), (key, wrappers)
        files, promised = _files(path)
        problems, self.specs = [], {}
        for file in files:
            try:
                found = _specs(file, *self._keys)
            except SourceError as error:
                problems += error.problems
                continue
            problems += [f"{file}: repeats {name}" for name in found.keys() & self.specs.keys()]
            self.specs |= found
        if not problems and promised is not None:
            problems += [f"{path}: no file holds {name}" for name in promised - self.specs.keys()]
        if problems:
            raise SourceError(sorted(problems))

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The named tensors, file by file."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.specs[name].file, []).append(name)
        for file, wanted in by_file.items():
            if file.suffix in _PICKLES:
                tensors = _unpickle(file, *self._keys)
                yield from ((name, _as_numpy(tensors[name])) for name in wanted)
                continue
            with safe_open(file, "numpy") as opened:
                for name in wanted:
                    yield name, opened.get_tensor(name)

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(_bytes(spec) for spec in self.specs.values())


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize


def _files(path: Path) -> tuple[list[Path], set[str] | None]:
    """The files to read, and the names that an index promises."""
    if path.is_file():
        return [path], None
    if not path.is_dir():
        raise SourceError([f"{path}: there is no such file or folder"])
    for suffix in (".safetensors", ".bin"):
        indices = [path / f"{stem}{suffix}.index.json" for stem in _STEMS]
        if index := next((file for file in indices if file.is_file()), None):
            return _shards(index)
    whole = [path / f"{stem}{suffix}" for suffix in (".safetensors", *_PICKLES) for stem in _STEMS]
    if file := next((file for file in whole if file.is_file()), None):
        return [file], None
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return others, None
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise SourceError([f"{path}: holds no weights (*.safetensors with an index, or one); {found}"])


def _shards(index: Path) -> tuple[list[Path], set[str]]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SourceError([f"{index}: is not an index of shards ({error!r})"]) from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise SourceError([f"{index}: names {name}, outside its folder" for name in outside])
    files = [index.parent / name for name in names]
    missing = [
        f"{file}: is missing, but {index.name} names it" for file in files if not file.exists()
    ]
    if missing:
        raise SourceError(missing)
    return files, set(weight_map)


def _specs(file: Path, key: str | None, wrappers: tuple[str, ...]) -> dict[str, TensorSpec]:
    if file.suffix in _PICKLES:
        tensors = _unpickle(file, key, wrappers)
        return {
            name: TensorSpec(
                tuple(tensor.shape), _as_numpy(tensor[:0] if tensor.ndim else tensor).dtype, file
            )
            for name, tensor in tensors.items()
        }
    try:
        with safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            types = {name: part.get_dtype() for name, part in slices.items()}
            if unknown := sorted(set(types.values()) - _DTYPES.keys()):
                raise SourceError([f"{file}: holds values of type {', '.join(unknown)}"])
            return {
                name: TensorSpec(tuple(part.get_shape()), _DTYPES[types[name]], file)
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise SourceError(
            [f"{file}: is not a whole safetensors file ({error}); download it again"]
        ) from error


def _unpickle(file: Path, key: str | None, wrappers: tuple[str, ...]) -> dict[str, Any]:
    """The tensors of a pickle; code in it is never run."""
    try:
        import torch
    except ImportError as error:
        raise SourceError([f'{file}: needs PyTorch; install "tora2_jax[convert]"']) from error
    try:
        mapped = zipfile.is_zipfile(file)  # torch's older format can only be read whole
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises bare errors of many kinds for a damaged file
        reason = first_line(error)[:200]
        raise SourceError(
            [f"{file}: is damaged, or holds more than tensors and was not run ({reason})"]
        ) from error
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise SourceError([f"{file}: has no entry {key!r}, which holds the tensors"])
        content = content[key]
    elif isinstance(content, dict):
        content = next((content[name] for name in wrappers if name in content), content)
    if not isinstance(content, dict):
        raise SourceError([f"{file}: is no dictionary of tensors"])
    faults = {name: _fault(name, value) for name, value in content.items()}
    if problems := [f"{file}: {name!r} {fault}" for name, fault in faults.items() if fault]:
        raise SourceError(problems)
    return content


def _fault(name: Any, value: Any) -> str | None:
    """Why an entry of a pickle cannot be a weight."""
    import torch

    if not isinstance(name, str):
        return f"is a key of type {type(name).__name__}; tensors have names"
    if not isinstance(value, torch.Tensor):
        return f"is of type {type(value).__name__}, no tensor"
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        return "is sparse, nested or without values; save it as a plain tensor"
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in {dtype.name for dtype in _DTYPES.values()}:
        return f"holds values of type {kind}; save it as bfloat16, float16 or float32"
    return None


def _as_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
