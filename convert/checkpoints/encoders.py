"""Stand-alone encoders: PyTorch files -> a folder for `config.weights`. One way for all families.

A command of a family reads what it needs, collects everything that is wrong in a list of problems,
and hands all to `write`, which raises them at once or writes the folder as a whole:

    problems = []
    data = read_config(source, problems)           # families whose settings lie beside the weights
    tensors = open_tensors(source, problems)       # or Arrays(...), of whatever form they came in
    settings = ...                                 # from `data` or from `tensors`; None if unusable
    build = lambda: DINOv2(settings, rngs=shape_rngs())
    encoder = Encoder("dino", settings, build, rules(settings))
    write(source, destination, encoder, tensors, problems)

The folder has the layout of every converted one: `NAME/` with the weights, `tokenizer/` if there is
one. `config.weights.NAME` takes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from flax import nnx

from convert.engine import folders
from convert.engine.finite import NonFiniteError
from convert.engine.rules import (
    ConversionError,
    Piece,
    Rule,
    Spec,
    assembled,
    known,
    listing,
    non_finite,
    plan,
)
from convert.engine.tensor_files import TensorFiles
from convert.engine.weight_places import SourceError
from convert.lora.files import is_lora
from tora2_jax.config import to_dict
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.weights import folder as weight_folder

CONFIG = "config.json"
# Types of Hugging Face's models (`model_type`) -> the command that converts them.
_COMMANDS = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2", "clip": "clip", "t5": "t5"}
_MERGE = (
    "is a LoRA, a change to a model; merge it into its model in PyTorch (merge_and_unload of "
    "PEFT), save that, and convert it"
)


class Tensors(Protocol):
    """The tensors of a source by name; `TensorFiles` and `Arrays` are such."""

    specs: Mapping[str, Spec]
    notes: list[str]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]: ...

    def size(self) -> int: ...


class Arrays:
    """Tensors that are in memory, for sources that are no files of tensors.

    Attributes:
        specs: The arrays by name; each knows its shape and type.
        notes: What the user should know of where they come from.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], notes: Iterable[str] = ()):
        self.specs, self.notes = dict(arrays), list(notes)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The named arrays."""
        return ((name, self.specs[name]) for name in names)

    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.specs.values())


class Encoder(NamedTuple):
    """A network that is converted alone.

    Attributes:
        component: Its name in `config.weights`, in `config.model` and in the converted folder.
        settings: A config dataclass; stored beside the weights and compared with `config.model`.
        build: The network, for `nnx.eval_shape`.
        rules: Its conversion table.
        free: Settings that may differ from model to model whatever the weights; not stored.
    """

    component: str
    settings: Any
    build: Callable[[], nnx.Module]
    rules: list[Rule]
    free: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """What is stored beside the weights."""
        kept = {
            name: value for name, value in to_dict(self.settings).items() if name not in self.free
        }
        return {"model": {self.component: kept}}


def read_config(source: Path, problems: list[str]) -> dict[str, Any]:
    """`config.json` of a model's folder, or beside its file; empty if it cannot be used."""
    path, before = (source if source.is_dir() else source.parent) / CONFIG, len(problems)
    content = folders.read_json(path, problems)
    if not content and len(problems) == before:
        problems.append(f"{path}: is empty")
    return content


def open_tensors(source: Path, problems: list[str]) -> TensorFiles | None:
    """The tensors of a file or folder; None, and `problems` says why, if they cannot be read."""
    try:
        return TensorFiles(source)
    except SourceError as error:
        problems += error.problems
        return None


def type_problems(data: Mapping[str, Any], known: tuple[str, ...]) -> list[str]:
    """Whether a `config.json` of Hugging Face belongs to another model.

    Args:
        data: Its content; nothing is said about an empty one.
        known: Types of model that are right.
    """
    found = data.get("model_type")
    if not data or found in known:
        return []
    wanted = f"{CONFIG}: model_type is {found!r}, not {' or '.join(map(repr, known))}"
    command = _COMMANDS.get(found) if isinstance(found, str) else None
    return [f"{wanted}; use `convert {command}`" if command else wanted]


def squares(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, with sizes that are given as two equal numbers as one."""

    def side(value: Any) -> Any:
        square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
        return value[0] if square else value

    sizes = ("image_size", "patch_size")
    return {name: side(value) if name in sizes else value for name, value in data.items()}


def write(
    source: Path,
    destination: str | Path,
    encoder: Encoder | None,
    tensors: Tensors | None,
    problems: list[str],
    tokenizer: Path | None = None,
) -> list[str]:
    """Makes the folder of an encoder, whole or not at all.

    Weights go through array by array, each in the dtype it came with.

    Args:
        source: How messages call what is converted.
        destination: Must not exist.
        encoder: None if its settings are not known; then there are problems.
        tensors: None if they cannot be read; then there are problems.
        problems: What is wrong with the source so far.
        tokenizer: A folder whose tokenizer is copied.

    Returns:
        What the user should know of what was read.

    Raises:
        ConversionError: lists the problems and every tensor that does not fit or is not finite.
        FolderError: the destination cannot be written.
    """
    problems, pieces = list(problems), {}
    if encoder is not None and tensors is not None:
        shapes = flat_variables(nnx.eval_shape(encoder.build))
        pieces = _pieces(encoder, tensors, shapes, problems)
        shapes = {path: tuple(value.shape) for path, value in shapes.items()}
    if problems:
        raise listing(source, problems)
    with folders.new_folder(destination, tensors.size()) as folder:
        writer = weight_folder.Writer(folder / encoder.component)
        try:
            for path, array in assembled(pieces, shapes, tensors.read):
                writer.write(path, array)
        except NonFiniteError as error:
            raise non_finite(error.faults) from None
        writer.finish(encoder.metadata())
        if tokenizer is not None:
            folders.copy_tokenizer(tokenizer, folder / "tokenizer")
    return tensors.notes


def _pieces(
    encoder: Encoder, tensors: Tensors, target: Mapping[str, Spec], problems: list[str]
) -> dict[str, list[Piece]]:
    """Which tensors make up each parameter; what does not fit goes to `problems`."""
    if isinstance(tensors, TensorFiles):
        tensors.strip(known(encoder.rules))
    if is_lora(tensors.specs):
        problems.append(_MERGE)
        return {}
    try:
        return plan(encoder.rules, tensors.specs, target)
    except ConversionError as error:
        problems.append(str(error))
        return {}


def preset_name(
    settings: Any,
    presets: Mapping[str, Callable[[], Any]],
    free: Callable[[Any], Any] = lambda settings: settings,
) -> str | None:
    """The published model that has these settings, if there is one.

    Args:
        settings: Of the weights.
        presets: Functions that give published settings, by name.
        free: Gives settings with those made equal that do not count.
    """
    wanted = free(settings)
    return next((name for name, preset in presets.items() if free(preset()) == wanted), None)


def settings_note(encoder: Encoder, presets: Mapping[str, Callable[[], Any]]) -> str:
    """What `config.model` must say for these weights: a preset, or each setting that is its own."""
    settings, default = encoder.settings, type(encoder.settings)()

    def free(other: Any) -> Any:
        return replace(other, **{name: getattr(default, name) for name in encoder.free})

    if name := preset_name(settings, presets, free):
        return f"config.model.{encoder.component} must be encoders.{name}()"
    own = {
        name: value
        for name, value in to_dict(free(settings)).items()
        if value != getattr(default, name)
    }
    listed = ", ".join(f"{name}={value!r}" for name, value in own.items())
    return f"config.model.{encoder.component} must have {listed or 'its default settings'}"
