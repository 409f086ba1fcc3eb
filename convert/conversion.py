"""Folders of diffusers and what is to become of them: checked first, as a whole, then written."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from convert import diffusers_config, folders, own_parts, tora_transformer
from convert.components import COMPONENTS, Component, components, misfits, target
from convert.engine import ConversionError, Piece, assembled, listing, plan
from convert.tensor_files import SourceError, TensorFiles
from convert.tokenizers import t5_problems
from tora2_jax import bundle, checkpoint, weight_folder
from tora2_jax.checkpoint import CheckpointError
from tora2_jax.config import DiffusionConfig, ModelConfig, to_dict

_PARTS = {part.folder: part for part in diffusers_config.PARTS}
# What tells CogVideoX 2B, 5B and 1.5 apart; I2V and T2V of one kind share VAE and schedule.
_KIND = ("num_layers", "num_heads", "head_dim", "positions", "patch_size_t")
_OWN_NAME = {component.folder: name for name, component in COMPONENTS.items()}


class Job(NamedTuple):
    """One set of weights that has been seen to fit."""

    component: Component
    files: TensorFiles
    pieces: dict[str, list[Piece]]
    shapes: dict[str, tuple[int, ...]]


class Plan(NamedTuple):
    """A checkpoint to be written; nothing about it is left to go wrong but the disk."""

    model: ModelConfig
    jobs: list[Job]
    copies: dict[str, Path]  # components that are taken as they are
    tokenizer: Path
    notes: list[str]  # what the user should know


class Base(NamedTuple):
    """A converted CogVideoX that gives what a source lacks."""

    folder: Path
    model: ModelConfig


def write(destination: str | Path, wanted: Plan) -> None:
    """Makes the checkpoint; it appears when everything is written.

    Weights go through array by array, each in the dtype it came with.

    Raises:
        FolderError: the destination cannot be written.
    """
    size = sum(job.files.size() for job in wanted.jobs)
    size += sum(map(folders.size, wanted.copies.values()))
    with folders.new_folder(destination, size) as folder:
        for job in wanted.jobs:
            _write(folder, job, wanted.model)
        for name, path in wanted.copies.items():
            if path.is_file():
                shutil.copyfile(path, folder / f"{name}{path.suffix}")
            else:
                shutil.copytree(path, folder / name)
        folders.copy_tokenizer(wanted.tokenizer, folder / "tokenizer")
        folders.write_json(folder / "config.json", {"model": to_dict(wanted.model)})


def _write(folder: Path, job: Job, model: ModelConfig) -> None:
    component = job.component
    writers = {name: weight_folder.Writer(folder / name) for name in component.parts}
    for path, array in assembled(job.pieces, job.shapes, job.files.read):
        own = component.prefix + path
        writers[component.part(own)].write(own, array)
    for writer in writers.values():
        writer.finish({"model": to_dict(model)})


def check_folder(source: Path, tora: bool = False, base: Path | None = None) -> Plan:
    """Checks a folder of diffusers.

    Args:
        source: Whole; Tora's may lack VAE, text encoder, tokenizer and scheduler.
        tora: Whether its transformer is Tora's or CogVideoX's.
        base: A converted CogVideoX that gives what the source lacks.

    Raises:
        ConversionError: lists everything that is missing, damaged or of another model.
    """
    names = [*_PARTS, "tokenizer"]
    lacking = [name for name in names[1:] if tora and not (source / name).is_dir()]
    wanted = [own for name, own in _OWN_NAME.items() if name in lacking]
    problems: list[str] = []
    found = _base(base, wanted, lacking, source, problems)
    faults: list[str] = []  # what leaves no settings to check the tensors against
    data = {
        name: folders.read_json(source / name / part.file, faults)
        for name, part in _PARTS.items()
        if name not in lacking
    }
    others = _class_problems(data, tora)
    files = _open(source, [name for name in _OWN_NAME if name not in lacking], tora, problems)
    tokenizer = (found.folder if found and "tokenizer" in lacking else source) / "tokenizer"
    if faults or others or (lacking and not found):
        usable = {name: data[name] for name in data.keys() - others.keys() if data[name]}
        problems += [*faults, *others.values(), *diffusers_config.setting_problems(usable)]
        problems += t5_problems(tokenizer) if found or "tokenizer" not in lacking else []
        raise listing(source, problems)
    name, other = source.absolute().name, found.model if found else None
    model, unusable = diffusers_config.read(data, name, other)
    if "transformer" in files and tora:
        model = with_motion(model, files["transformer"])
    model, kept = own_parts.read(source, model, problems)
    problems += unusable + t5_problems(tokenizer, model.text.vocab_size)
    problems += _differences(other, model) if lacking else []
    jobs = []
    for component in components(model).values():
        if component.folder in files:
            jobs += make_job(component, model, files[component.folder], problems)
    if problems:
        raise listing(source, problems)
    notes = ["--base was not needed: the source has everything"] if base and not lacking else []
    notes += _sampling_notes(model) if tora else []
    copies = {name: checkpoint.component_path(found.folder, name) for name in wanted}
    return Plan(model, jobs, copies | kept, tokenizer, notes)


def _sampling_notes(model: ModelConfig) -> list[str]:
    """Where a folder's scheduler is not the one that Tora's inference script puts in its place."""
    found, released = model.diffusion, DiffusionConfig()
    given, wanted = (
        f"{config.scheduler} with {config.timestep_spacing} spacing" for config in (found, released)
    )
    if given == wanted:
        return []
    return [f"kept from the scheduler's file: {given}; Tora's own script samples by {wanted}"]


def _base(
    path: Path | None, wanted: list[str], lacking: list[str], source: Path, problems: list[str]
) -> Base | None:
    if path is not None:
        return read_base(path, wanted, problems)
    if lacking:
        problems.append(
            f"{', '.join(lacking)}: not in {source}; name a folder that has them with --base, "
            "which `convert cogvideox` makes"
        )
    return None


def read_base(path: Path, wanted: list[str], problems: list[str]) -> Base | None:
    """A folder that `convert cogvideox` made; what is wrong with it goes to `problems`.

    Args:
        path: The folder.
        wanted: Names of the components that are needed of it.
        problems: Grows.
    """
    try:
        model = bundle.load_config(path)
    except CheckpointError as error:
        problems.append(f"--base: {error}; `convert cogvideox` makes such a folder")
        return None
    for name in wanted:
        place = checkpoint.component_path(path, name)
        if place is None:
            problems.append(f"--base: {name} is not in {path}")
            continue
        try:
            problems += [f"--base: {fault}" for fault in misfits(COMPONENTS[name], model, [place])]
        except CheckpointError as error:
            problems.append(f"--base: {error}")
    return Base(path, model)


def _differences(base: ModelConfig, model: ModelConfig) -> list[str]:
    """Whether a base's VAE and schedule belong to another CogVideoX, which no shape may show."""
    return [
        f"--base: transformer.{name} is {getattr(base.transformer, name)!r}, but the source's is "
        f"{getattr(model.transformer, name)!r}; take the CogVideoX that this Tora was made from"
        for name in _KIND
        if getattr(base.transformer, name) != getattr(model.transformer, name)
    ]


def make_job(
    component: Component, model: ModelConfig, files: TensorFiles, problems: list[str]
) -> list[Job]:
    """The job of a component, or none, and then `problems` tells everything that does not fit."""
    shapes = target(component, model)
    try:
        pieces = plan(component.rules(model), files.specs, shapes)
    except ConversionError as error:
        problems.append(f"{component.folder}: {error}")
        return []
    return [Job(component, files, pieces, {path: spec.shape for path, spec in shapes.items()})]


def with_motion(model: ModelConfig, files: TensorFiles) -> ModelConfig:
    """The model with the motion path whose tensors there are, called Tora."""
    motion = tora_transformer.motion_config(files.specs, model.transformer.num_layers)
    return replace(model, motion=motion, name=re.sub("^cogvideox", "tora", model.name))


def _open(
    source: Path, names: list[str], tora: bool, problems: list[str]
) -> dict[str, TensorFiles]:
    """The files of a folder's parts that can be used; what is wrong with the others is noted."""
    files = {}
    for name in names:
        try:
            files[name] = TensorFiles(source / name)
        except SourceError as error:
            problems += error.problems
    if "transformer" in files and (other := _kind_problems(files["transformer"], tora)):
        del files["transformer"]  # every tensor of it would be said to be wrong
        problems += other
    return files


def _class_problems(data: Mapping[str, Mapping[str, Any]], tora: bool) -> dict[str, str]:
    """What is wrong with the classes of a folder's parts, by part."""
    problems = {}
    for name, content in data.items():
        part = _PARTS[name]
        known = part.classes
        if tora and part is diffusers_config.TRANSFORMER:
            known = (diffusers_config.TORA_CLASS, *known)
        listed = content.get("architectures") or [None]
        if not isinstance(listed, list):
            problems[name] = f"{name}/{part.file}: architectures is {listed!r}; it must be a list"
            continue
        given = content.get("_class_name") or listed[0]
        if not content or given in known:
            continue
        advice = "is this a CogVideoX folder?"
        if given == diffusers_config.TORA_CLASS:
            advice = "use `convert tora`"
        problems[name] = (
            f"{name}/{part.file}: is a {given}, not a {' or '.join(known[:2])}; {advice}"
        )
    return problems


def _kind_problems(files: TensorFiles, tora: bool) -> list[str]:
    """Whether the transformer is the other of the two."""
    found = tora_transformer.motion_config(files.specs, 1) is not None
    if found == tora:
        return []
    if tora:
        return ["transformer: has none of Tora's tensors (traj_extractor); use `convert cogvideox`"]
    return ["transformer: has Tora's tensors (traj_extractor); use `convert tora`"]
