"""Weights by diffusers' names and what is to become of them: checked as a whole, then written."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from convert.checkpoints import diffusers_config, own_parts
from convert.checkpoints.components import COMPONENTS, Component, components, misfits, target
from convert.engine import folders
from convert.engine.finite import NonFiniteError
from convert.engine.rules import ConversionError, Piece, assembled, known, listing, non_finite, plan
from convert.engine.tensor_files import TensorFiles
from convert.engine.tokenizers import t5_problems
from convert.engine.weight_places import SourceError
from convert.families import tora_transformer
from tora2_jax.config import DiffusionConfig, ModelConfig, stored, to_dict
from tora2_jax.errors import CheckpointError
from tora2_jax.weights import bundle, checkpoint
from tora2_jax.weights import folder as weight_folder

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
    """A checkpoint to be written; what may still go wrong is the disk, or a value in a file."""

    model: ModelConfig
    jobs: list[Job]
    copies: dict[str, Path]  # components that are taken as they are
    tokenizer: Path
    notes: list[str]  # what the user should know


class Base(NamedTuple):
    """A converted CogVideoX or Tora that gives what a source lacks."""

    folder: Path
    model: ModelConfig


def write(destination: str | Path, wanted: Plan) -> None:
    """Makes the checkpoint; it appears when everything is written.

    Weights go through array by array, each in the dtype it came with.

    Raises:
        FolderError: the destination cannot be written.
        ConversionError: names all tensors whose values are not finite.
    """
    size = sum(job.files.size() for job in wanted.jobs)
    size += sum(map(folders.size, wanted.copies.values()))
    with folders.new_folder(destination, size) as folder:
        faults: list[str] = []
        for job in wanted.jobs:
            try:
                _write(folder, job, wanted.model)
            except NonFiniteError as error:
                faults += [f"{job.component.folder}: {fault}" for fault in error.faults]
        if faults:
            raise non_finite(faults)
        for name, path in wanted.copies.items():
            if path.is_file():
                shutil.copyfile(path, folder / f"{name}{path.suffix}")
            else:
                shutil.copytree(path, folder / name)
        folders.copy_tokenizer(wanted.tokenizer, folder / "tokenizer")
        folders.write_json(folder / "config.json", stored.of_model(wanted.model))


def _write(folder: Path, job: Job, model: ModelConfig) -> None:
    component = job.component
    writers = {name: weight_folder.Writer(folder / name) for name in component.parts}
    for path, array in assembled(job.pieces, job.shapes, job.files.read):
        own = component.prefix + path
        writers[component.part(own)].write(own, array)
    for writer in writers.values():
        writer.finish({"model": to_dict(model)})


def check_parts(
    source: Path,
    parts: Mapping[str, Path],
    files: Mapping[str, TensorFiles],
    problems: list[str],
    tora: bool = False,
    base: Path | None = None,
) -> Plan:
    """Checks weights by diffusers' names: a whole folder, or a transformer alone with a base.

    Args:
        source: How messages call what is converted, and where `tora2/` may be.
        parts: Folder of each part that there is; the transformer's may be a file, or have no
            config, and then its settings are the base's.
        files: Those of the parts that could be opened.
        problems: What is wrong so far.
        tora: Whether the transformer is Tora's or CogVideoX's.
        base: A converted CogVideoX that gives what the source lacks.

    Raises:
        ConversionError: lists everything that is missing, damaged or of another model.
    """
    problems = list(problems)
    lacking = [name for name in (*_PARTS, "tokenizer") if name not in parts]
    wanted = [own for name, own in _OWN_NAME.items() if name in lacking]
    read = files["transformer"].notes if "transformer" in files else []
    found = _base(base, wanted, lacking, source, problems, read)
    faults: list[str] = []  # what leaves no settings to check the tensors against
    data = _read_settings(parts, found, faults)
    others = _class_problems(data, tora)
    files = _of_this_kind(files, tora, problems)
    tokenizer = parts.get("tokenizer", (found.folder if found else source) / "tokenizer")
    if faults or others or (lacking and not found):
        usable = {name: data[name] for name in data.keys() - others.keys() if data[name]}
        problems += [*faults, *others.values(), *diffusers_config.setting_problems(usable)]
        problems += t5_problems(tokenizer) if found or "tokenizer" in parts else []
        raise listing(source, problems)
    name, other = _name(source), found.model if found else None
    model, unusable = diffusers_config.read(data, name, other)
    if "transformer" in files and tora:
        model = with_motion(model, files["transformer"])
    model, kept = own_parts.read(source, model, problems)
    problems += unusable + t5_problems(tokenizer, model.text.vocab_size)
    problems += _differences(other, model) if lacking else []
    jobs = _jobs(model, files, problems)
    if problems:
        raise listing(source, problems)
    copies = {name: checkpoint.component_path(found.folder, name) for name in wanted}
    notes = _notes(model, jobs, tora, needless_base=bool(base and not lacking))
    return Plan(model, jobs, copies | kept, tokenizer, notes)


def _notes(model: ModelConfig, jobs: list[Job], tora: bool, needless_base: bool) -> list[str]:
    """What is said of a conversion that succeeds."""
    notes = [note for job in jobs for note in job.files.notes]
    notes += ["--base was not needed: the source has everything"] if needless_base else []
    return notes + (_sampling_notes(model) if tora else [])


def _of_this_kind(
    files: Mapping[str, TensorFiles], tora: bool, problems: list[str]
) -> dict[str, TensorFiles]:
    """The files without a transformer of the other kind, of which every tensor would be wrong."""
    found = _kind_problems(files["transformer"], tora) if "transformer" in files else []
    problems += found
    return {name: own for name, own in files.items() if not (found and name == "transformer")}


def _jobs(model: ModelConfig, files: Mapping[str, TensorFiles], problems: list[str]) -> list[Job]:
    """The jobs of all files that there are; what does not fit goes to `problems`."""
    return [
        job
        for component in components(model).values()
        if component.folder in files
        for job in make_job(component, model, files[component.folder], problems)
    ]


def _name(source: Path) -> str:
    """What to call a model that is none of the published ones."""
    return source.absolute().name if source.is_dir() else source.stem


def _read_settings(
    parts: Mapping[str, Path], base: Base | None, faults: list[str]
) -> dict[str, dict[str, Any]]:
    """The JSON files of the parts that there are."""
    data = {}
    for name, part in _PARTS.items():
        if name not in parts:
            continue
        alone = part is diffusers_config.TRANSFORMER and len(parts) == 1
        place = parts[name]
        file = (place if place.is_dir() else place.parent) / part.file
        if alone and not (file.is_file() and (place.is_dir() or _of_a_transformer(file))):
            plain = base and diffusers_config.write(replace(base.model, motion=None))
            data[name] = plain[name] if plain else {}
        else:
            data[name] = folders.read_json(file, faults)
    return data


def _of_a_transformer(file: Path) -> bool:
    """Whether a JSON file that lies beside a file of weights says that it is the transformer's."""
    classes = (*diffusers_config.TRANSFORMER.classes, diffusers_config.TORA_CLASS)
    return folders.read_json(file, []).get("_class_name") in classes


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
    path: Path | None,
    wanted: list[str],
    lacking: list[str],
    source: Path,
    problems: list[str],
    read: list[str],
) -> Base | None:
    """The base, if there is one; what is wrong with that, or that it lacks, goes to `problems`.

    Args:
        path: Its folder.
        wanted: Names of the components that are needed of it.
        lacking: Names of the parts that the source does not have.
        source: How messages call it.
        problems: Grows.
        read: What there is to say of the source's files.
    """
    if path is not None:
        return read_base(path, wanted, problems)
    if lacking:
        alone = "; it is a transformer alone" if len(lacking) == len(_PARTS) else ""
        problems.append(
            f"{', '.join(lacking)}: not in {source}{alone}; name a folder that has them with "
            "--base, which `convert cogvideox` makes"
        )
        problems += read if alone else []
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
        problems.append(f"--base: {error} (`convert cogvideox` makes such a folder)")
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
        f"{getattr(model.transformer, name)!r}; take the CogVideoX that it was made from"
        for name in _KIND
        if getattr(base.transformer, name) != getattr(model.transformer, name)
    ]


def make_job(
    component: Component, model: ModelConfig, files: TensorFiles, problems: list[str]
) -> list[Job]:
    """The job of a component, or none, and then `problems` tells everything that does not fit."""
    shapes, rules = target(component, model), component.rules(model)
    files.strip(known(rules))
    try:
        pieces = plan(rules, files.specs, shapes)
    except ConversionError as error:
        problems.append(f"{component.folder}: {error}")
        return []
    return [Job(component, files, pieces, {path: spec.shape for path, spec in shapes.items()})]


def with_motion(model: ModelConfig, files: TensorFiles) -> ModelConfig:
    """The model with the motion path whose tensors there are, called Tora."""
    motion = tora_transformer.motion_config(files.specs, model.transformer.num_layers)
    return replace(model, motion=motion, name=re.sub("^cogvideox", "tora", model.name))


def open_parts(parts: Mapping[str, Path], problems: list[str]) -> dict[str, TensorFiles]:
    """The files of those parts that hold weights; what is wrong with the others is noted."""
    files = {}
    for name in _OWN_NAME:
        if name not in parts:
            continue
        try:
            files[name] = TensorFiles(parts[name])
        except SourceError as error:
            problems += error.problems
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
