"""Tora as ComfyUI's CogVideoX nodes hold it: what it adds to a CogVideoX-5B, in two files."""

from dataclasses import replace
from pathlib import Path

from convert.checkpoints import conversion
from convert.checkpoints.components import TORA, target
from convert.engine.rules import ConversionError, listing, plan
from convert.engine.tensor_files import TensorFiles
from convert.engine.tokenizers import t5_problems
from convert.engine.weight_places import SourceError
from convert.families import tora_sat, tora_transformer
from tora2_jax.weights import checkpoint

_FOLDERS = ("fuser", "traj_extractor")  # also what the names begin with in diffusers
_FROM_BASE = ("transformer", "vae", "text")


def is_adapter(source: Path) -> bool:
    """Whether a folder is of this form."""
    return any((source / name).is_dir() for name in _FOLDERS)


def check(source: Path, base: Path | None) -> conversion.Plan:
    """Checks both files and the base as a whole; errors are those of `sources.check`.

    Tora trains nothing of the transformer that it is added to, so the base's stays as it is.

    Args:
        source: A folder with `fuser/` and `traj_extractor/`.
        base: A folder that `convert cogvideox` made of CogVideoX-5B.
    """
    problems: list[str] = []
    files = _open(source, problems)
    if base is None:
        problems.append(
            "--base is needed: a folder that `convert cogvideox` made of CogVideoX-5B; the source "
            "has what Tora adds to it, fuser and traj_extractor, alone"
        )
        raise listing(source, problems)
    found = conversion.read_base(base, list(_FROM_BASE), problems)
    if found is not None:
        problems += t5_problems(base / "tokenizer", found.model.text.vocab_size)
        problems += tora_sat.base_problems(found.model, {})
    if problems:
        raise listing(source, problems)
    model = replace(found.model, motion=None, personalization=None, name=source.absolute().name)
    model = conversion.with_motion(model, files)
    job = _job(model, files, source)
    copies = {name: checkpoint.component_path(base, name) for name in _FROM_BASE}
    return conversion.Plan(model, [job], copies, base / "tokenizer", files.notes)


def _open(source: Path, problems: list[str]) -> TensorFiles | None:
    """The tensors of both files by the names of the diffusers version."""
    opened = []
    for name in _FOLDERS:
        try:
            files = TensorFiles(source / name)
        except SourceError as error:
            problems += error.problems
            continue
        if not all(tensor.startswith(f"{name}.") for tensor in files.specs):
            files.rename("", f"{name}.")
        opened.append(files)
    if len(opened) < len(_FOLDERS):
        return None
    whole, other = opened
    whole.specs |= other.specs
    whole.notes += other.notes
    return whole


def _job(model, files: TensorFiles, source: Path) -> conversion.Job:
    """The motion path alone, of the whole Tora."""
    component = TORA._replace(parts=("motion",))
    shapes = {
        path: shape for path, shape in target(TORA, model).items() if TORA.part(path) == "motion"
    }
    try:
        pieces = plan(tora_transformer.rules(model.motion), files.specs, shapes)
    except ConversionError as error:
        raise listing(source, [str(error)]) from error
    sizes = {path: shape.shape for path, shape in shapes.items()}
    return conversion.Job(component, files, pieces, sizes)
