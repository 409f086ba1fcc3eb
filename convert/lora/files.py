"""Files of LoRAs by the names that PEFT, diffusers and ComfyUI's trainers give.

A LoRA holds for some linear maps or convolutions two thin matrices, `down` [rank, in] and `up`
[out, rank]; the change of the weight is `scale * up @ down`.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from convert.engine import folders
from convert.engine.finite import not_finite
from convert.engine.tensor_files import TensorFiles
from convert.engine.weight_places import SourceError

MERGE = (
    "is a LoRA, a change to a model: merge it with `convert lora --src LORA --base DIR --dst DIR`, "
    "where DIR of --base is what `convert cogvideox` made of that model"
)
_CONFIG = "adapter_config.json"  # PEFT's, beside its files
_METADATA = "lora_adapter_metadata"  # diffusers', the same settings inside the file
_OWN = "transformer."  # before the settings that are of the transformer's LoRA
_MARK = re.compile(r"lora_|\.lora\.|_lora\.|lokr_|hada_")
# What stands before the name of a part of the transformer, in one program or another.
_PREFIX = re.compile(
    r"lora_(unet|transformer)_+"
    r"|(base_model\.model\.)?(model\.)?((transformer|diffusion_model|unet)\.)?"
)
_FACTOR = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<letter>[AB])(?:\.\w+)?\.weight"
    r"|(?:[._]lora\.|\.lora_)(?P<word>down|up)\.weight|\.(?P<alpha>alpha))"
)
_UNKNOWN = {
    r"lora_magnitude_vector|dora_scale": "DoRA",
    r"lokr_": "LoKr",
    r"hada_": "LoHa",
}
_PEFT_ALONE = "merge it in PyTorch (merge_and_unload of PEFT) and convert the whole"
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # leave the base as it is


class Factors(NamedTuple):
    """What a LoRA does to one weight."""

    down: np.ndarray
    up: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """How many columns `up` has."""
        return self.up.shape[1]

    def change_shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return (len(self.up), *self.down.shape[1:])

    def change(self) -> np.ndarray:
        """The change of the weight in float32, `[out, in]` or `[out, in, height, width]`."""
        down, up = (np.asarray(value, np.float32) for value in (self.down, self.up))
        flat = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        return (self.scale * flat).reshape(len(up), *down.shape[1:])


class Lora(NamedTuple):
    """A whole LoRA.

    Attributes:
        factors: By the name of what they change, as diffusers names it, without `.weight`.
        notes: What the user should know.
    """

    factors: dict[str, Factors]
    notes: list[str]


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a LoRA, or another small change to a model."""
    return any(_MARK.search(name) for name in names)


def missing(source: Path) -> list[str]:
    """Why a file or folder has no weights at all; empty if it has some."""
    try:
        TensorFiles(source)
    except SourceError as error:
        return error.problems
    return []


def read(source: Path, modules: Collection[str], problems: list[str]) -> Lora:
    """A LoRA of a transformer.

    Args:
        source: Its file, or the folder it lies in.
        modules: Names of everything in the transformer that has a weight, as diffusers names it.
        problems: Grows by everything that is missing, unknown or of a kind that is not implemented.
    """
    try:
        files = TensorFiles(source)
    except SourceError as error:
        problems += error.problems
        return Lora({}, [])
    if found := _other_kinds(files.specs):
        problems += found
        return Lora({}, [])
    settings = _settings(files, problems)
    named = _named(files.specs, modules, problems)
    tensors = dict(files.read(files.specs))
    faults = {name: not_finite(tensor) for name, tensor in tensors.items()}
    problems += [f"{name} {fault}" for name, fault in faults.items() if fault]
    factors = {}
    for module, names in named.items():
        found = {kind: tensors[name] for kind, name in names.items()}
        if fault := _fault(found):
            problems.append(f"{module}: {fault}")
        else:
            alpha = found.get("alpha")
            scale = _scale(settings, module, len(found["down"]), alpha)
            factors[module] = Factors(found["down"], found["up"], scale)
    if not named and not problems:
        problems.append(f"holds no LoRA of a transformer, but {', '.join(list(tensors)[:4])}")
    told = settings or any("alpha" in names for names in named.values())
    notes = [] if told else [_UNTOLD]
    return Lora(factors, files.notes + notes)


_UNTOLD = (
    "the LoRA does not say its alpha, so alpha is taken to be its rank, as in diffusers; if it was "
    "trained with another, give --scale ALPHA/RANK as a number"
)


def _other_kinds(names: Iterable[str]) -> list[str]:
    found = []
    for pattern, kind in _UNKNOWN.items():
        marked = [name for name in names if re.search(pattern, name)]
        if marked:
            found.append(f"is a {kind}, as {marked[0]} shows: not implemented; {_PEFT_ALONE}")
    return found


def _named(
    names: Iterable[str], modules: Collection[str], problems: list[str]
) -> dict[str, dict[str, str]]:
    """Names in the file by what they change and by what they are: `down`, `up`, `alpha`."""
    flat = {module.replace(".", "_"): module for module in modules}
    found: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        match = _FACTOR.fullmatch(name.replace(".processor.", "."))
        module = match and _module(match["module"], modules, flat)
        if module is None:
            problems.append(f"extra: {name} belongs to no part of the base's transformer")
            continue
        kind = match["word"] or {"A": "down", "B": "up", None: "alpha"}[match["letter"]]
        if kind in (entry := found.setdefault(module, {})):
            problems.append(f"repeated: {name} is the same as {entry[kind]}")
        entry[kind] = name
    return found


def _module(given: str, modules: Collection[str], flat: Mapping[str, str]) -> str | None:
    """The part of the transformer that a name in a LoRA means."""
    bare = given[_PREFIX.match(given).end() :]
    for name in (given, bare, f"{bare}.0"):  # old files write to_out for to_out.0
        if name in modules:
            return name
    return flat.get(bare)


def _fault(found: Mapping[str, np.ndarray]) -> str | None:
    """Why two matrices and a number are no LoRA of one weight."""
    if absent := [kind for kind in ("down", "up") if kind not in found]:
        return f"has no {' and no '.join(absent)} matrix"
    down, up = found["down"], found["up"]
    if down.ndim not in (2, 4) or up.ndim != down.ndim or up.shape[1] != len(down):
        return f"down {down.shape} and up {up.shape} do not go together"
    if not down.size or not up.size:
        return f"down {down.shape} and up {up.shape} hold no numbers"
    if any("float" not in str(array.dtype) for array in (down, up)):
        return f"is stored as {down.dtype} and {up.dtype}, which are no real numbers"
    if "alpha" in found and found["alpha"].size != 1:
        return f"alpha has the shape {found['alpha'].shape}; it must be one number"
    return None


def _settings(files: TensorFiles, problems: list[str]) -> dict[str, Any]:
    """PEFT's settings of a LoRA, from beside the file or from inside; empty if there are none."""
    file = next(iter(files.specs.values())).file
    beside = file.parent / _CONFIG
    settings = folders.read_json(beside, problems) if beside.is_file() else _inside(file, problems)
    wrong = {
        "peft_type": settings.get("peft_type", "LORA") != "LORA",
        "use_dora": bool(settings.get("use_dora")),
        "alora_invocation_tokens": bool(settings.get("alora_invocation_tokens")),
        "layer_replication": bool(settings.get("layer_replication")),
        "init_lora_weights": settings.get("init_lora_weights") not in _PLAIN_STARTS,
    }
    found = [
        f"{beside.name}: {name} is {settings[name]!r}: not implemented; {_PEFT_ALONE}"
        for name, is_wrong in wrong.items()
        if is_wrong
    ]
    if not _alphas_can_be_used(settings):
        found.append(f"{beside.name}: lora_alpha and alpha_pattern do not hold numbers by names")
    problems += found
    return {} if found else settings


def _alphas_can_be_used(settings: Mapping[str, Any]) -> bool:
    patterns = settings.get("alpha_pattern") or {}
    try:
        values = [settings.get("lora_alpha", 8), *patterns.values()]
        for name in patterns:
            re.compile(name)
        return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    except (AttributeError, TypeError, re.error):
        return False


def _inside(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        with safe_open(file, "numpy") as opened:
            text = (opened.metadata() or {}).get(_METADATA, "{}")
    except SafetensorError:  # a pickle
        return {}
    try:
        own = {name: value for name, value in json.loads(text).items() if name.startswith(_OWN)}
    except (ValueError, AttributeError, RecursionError):
        problems.append(f"{file.name}: {_METADATA} in its header is no JSON object")
        return {}
    return {name.removeprefix(_OWN): value for name, value in own.items()}


def _scale(settings: Mapping[str, Any], module: str, rank: int, alpha: np.ndarray | None) -> float:
    """By what the product is multiplied: alpha by rank, or by its root."""
    if alpha is not None:
        return float(alpha.reshape(())) / rank
    if not settings:
        return 1.0
    value = settings.get("lora_alpha", 8)  # PEFT's default
    for pattern, other in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            value = other
            break
    return value / (math.sqrt(rank) if settings.get("use_rslora") else rank)
