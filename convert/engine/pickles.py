"""PyTorch's pickles of tensors; code in them is never run."""

import argparse
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.engine.weight_places import SourceError
from tora2_jax.errors import first_line

# Entries under which training programs put the tensors beside what else they keep.
WRAPPERS = ("state_dict_backbone", "state_dict", "module", "model", "net")
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")  # torch names what it would have had to run
_TYPES = {
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
}  # fmt: skip


def read(file: Path) -> dict[str, Any]:
    """The tensors of a pickle by name, mapped into memory where the format allows it.

    Raises:
        SourceError: PyTorch is not there, or the file is damaged, holds code, or holds something
            else than tensors where they should be.
    """
    try:
        import torch
    except ImportError as error:
        raise SourceError([f'{file}: needs PyTorch; install "tora2_jax[convert]"']) from error
    try:
        mapped = zipfile.is_zipfile(file)  # torch's older format can only be read whole
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_data()):
            warnings.simplefilter("ignore")  # of the age of a pickle, which the user cannot change
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises bare errors of many kinds for a damaged file
        raise SourceError([f"{file}: {_reason(error)}"]) from error
    while isinstance(content, dict) and (inner := _inner(content)) is not None:
        content = inner
    if not isinstance(content, dict):
        raise SourceError([f"{file}: is no dictionary of tensors"])
    faults = {name: _fault(name, value) for name, value in content.items()}
    if problems := [f"{file}: {name!r} {fault}" for name, fault in faults.items() if fault]:
        raise SourceError(problems)
    return content


def _inner(content: dict) -> dict | None:
    entries = (content[name] for name in WRAPPERS if name in content)
    return next((entry for entry in entries if isinstance(entry, dict)), None)


def _plain_data() -> list[Any]:
    """What NumPy's arrays and numbers, and command lines, are rebuilt by: none runs other code.

    Programs keep the state of NumPy's random numbers, scores and their flags beside the weights.
    NumPy 1 and 2 have other names for the same functions.
    """
    multiarray = np._core.multiarray
    functions = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (multiarray._reconstruct, multiarray.scalar)
        for core in ("core", "_core")
    ]
    types = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efdUSV"}
    return [*functions, np.ndarray, np.dtype, *types, argparse.Namespace]


def _reason(error: Exception) -> str:
    if match := _REFUSED.search(str(error)):
        return (
            f"holds {match[1]}, more than tensors and plain values, and was not run; load it where "
            "you trust it, and save the dictionary of its tensors alone"
        )
    reason = first_line(error)[:200]
    told = "" if "weights_only" in reason else f" ({reason})"  # advice to let the file run code
    return f"is no file of PyTorch's, is damaged, or holds more than tensors and was not run{told}"


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
    if kind not in _TYPES:
        return f"holds values of type {kind}; save it as bfloat16, float16 or float32"
    return None


def as_numpy(tensor: Any) -> np.ndarray:
    """A PyTorch tensor as an array of the same type, sharing its memory where that is possible."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
