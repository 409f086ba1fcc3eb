"""Which files of a folder hold a model's weights: whole, in shards, as a variant, or of a run.

The names are those that diffusers, transformers, PEFT, accelerate, DeepSpeed and SAT write.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PICKLES = (".bin", ".pt", ".pth", ".tar", ".ckpt")  # the fourth as in "model.pth.tar"
_STEMS = (
    "diffusion_pytorch_model",
    "model",
    "pytorch_model",
    "pytorch_lora_weights",
    "adapter_model",
)
_SUFFIXES = (".safetensors", ".bin")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(\.\w+)?(\.\w+)")
_LATEST = "latest"  # names the newest folder of a run of DeepSpeed or SAT
_RANK = "mp_rank_*_model_states.pt"
_PARTITIONED = "zero_pp_rank_*_model_states.pt"
_GATHER = "gather them with the zero_to_fp32.py beside them, and give what it writes"


class SourceError(ValueError):
    """Files that cannot be read; `problems` lists all that is wrong, each with its file."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Place(NamedTuple):
    """Where weights lie."""

    files: list[Path]
    promised: set[str] | None  # names of tensors that an index says there are
    notes: list[str]  # what the user should know of the choice


def find(path: Path) -> Place:
    """The files of a model's weights.

    In a folder the first of these is taken: an index of shards or one file by the usual names; the
    same as a variant (`model.fp16.safetensors`), if there is only one; all shards without an index;
    the folder of a run of DeepSpeed or SAT; a single file of weights by any name.

    Args:
        path: A file or a folder.

    Raises:
        SourceError: there are none, or not all, or it is not clear which.
    """
    if path.is_file():
        return Place([path], None, [])
    if not path.is_dir():
        raise SourceError([f"{path}: there is no such file or folder"])
    for search in (_usual, _variant, _unlisted_shards, _run, _single):
        if place := search(path):
            return place
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
    rest = f"it holds {found}" if found else "it is empty"
    raise SourceError([f"{path}: no weights there (*.safetensors with an index, or one); {rest}"])


def _usual(folder: Path) -> Place | None:
    for suffix in _SUFFIXES:
        indices = [folder / f"{stem}{suffix}.index.json" for stem in _STEMS]
        if index := _first(indices):
            return _listed_shards(index, [])
    names = [f"{stem}{suffix}" for suffix in (".safetensors", *PICKLES) for stem in _STEMS]
    file = _first(folder / name for name in names)
    return file and Place([file], None, [])


def _first(files: Iterable[Path]) -> Path | None:
    return next((file for file in files if file.is_file()), None)


def _variant(folder: Path) -> Place | None:
    """Files whose names say a precision or another form: `diffusion_pytorch_model.fp16....`."""
    stems, suffixes = "|".join(_STEMS), "|".join(map(re.escape, _SUFFIXES))
    index = rf"(?:{stems})(?:{suffixes})\.index\.(?P<variant>\w+)\.json"
    whole = rf"(?:{stems})\.(?P<variant>\w+)(?:{suffixes})"
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: (file.suffix == ".bin", file.name)):
        if match := re.fullmatch(index, file.name) or re.fullmatch(whole, file.name):
            found.setdefault(match["variant"], []).append(file)
    if not found:
        return None
    if len(found) > 1:
        raise SourceError(
            [
                f"{folder}: holds the variants {', '.join(sorted(found))}; keep the files of one "
                "of them in the folder"
            ]
        )
    ((variant, files),) = found.items()
    notes = [f"{folder}: read the variant {variant}"]
    listed = next((file for file in files if file.suffix == ".json"), None)
    return _listed_shards(listed, notes) if listed else Place(files[:1], None, notes)


def _listed_shards(index: Path, notes: list[str]) -> Place:
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
    return Place(files, set(weight_map), notes)


def _unlisted_shards(folder: Path) -> Place | None:
    """Shards whose index was not downloaded: their names say how many there are."""
    shards: dict[tuple[str, ...], dict[int, Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(file.name)
        if match and file.suffix in _SUFFIXES:
            kind = (match["stem"], match["count"], match[4] or "", match[5])
            shards.setdefault(kind, {})[int(match["number"])] = file
    if len(shards) != 1:
        return None
    (((_, count, *_), files),) = shards.items()
    if absent := sorted(set(range(1, int(count) + 1)) - set(files)):
        listed = ", ".join(map(str, absent))
        raise SourceError([f"{folder}: of {int(count)} shards these are missing: {listed}"])
    notes = [f"{folder}: has no index of its shards; all {int(count)} were read"]
    return Place(list(files.values()), None, notes)


def _run(folder: Path) -> Place | None:
    """The folder in which a training program keeps its checkpoints, or one of them."""
    pointer, notes = folder / _LATEST, []
    if pointer.is_file():
        name = pointer.read_text(errors="replace").strip()
        if not name or Path(name).name != name or not (folder / name).is_dir():
            raise SourceError([f"{pointer}: names {name[:80]!r}, which is no folder beside it"])
        folder = folder / name
    ranks = sorted(folder.glob(_RANK))
    if len(ranks) == 1:
        if pointer.is_file():
            notes.append(f"read {ranks[0]}, to which {pointer} of DeepSpeed leads")
        return Place(ranks, None, notes)
    if ranks:
        raise SourceError(
            [f"{folder}: {len(ranks)} files {_RANK} hold a part of each tensor; {_GATHER}"]
        )
    if list(folder.glob(_PARTITIONED)):
        raise SourceError(
            [f"{folder}: is a DeepSpeed checkpoint of ZeRO stage 3, cut into parts; {_GATHER}"]
        )
    if list(folder.glob("*.distcp")):
        raise SourceError(
            [
                f"{folder}: is a distributed checkpoint of PyTorch; make one file of it: python -m "
                f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt"
            ]
        )
    return None


def _single(folder: Path) -> Place | None:
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    for suffixes in ((".safetensors",), PICKLES, (".gguf",)):  # the last to be told what it is
        found = [file for file in files if file.suffix in suffixes]
        if len(found) == 1:
            return Place(found, None, [])
        if found and suffixes == (".safetensors",):
            return None
    return None
