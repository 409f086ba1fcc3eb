"""Files with what the encoders say about one reference image, in the place of the image.

`.npz` (numpy) or `.safetensors`, with arrays `dino [tokens, width]` and, where there is a prior,
`prior_tokens [k, f]` and `prior_vector [f_vector]`. They may say for which kind of entity the prior
is: `kind`, an array of one text in npz, metadata in safetensors. Nothing in them is ever run.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from tora2_jax.config import ModelConfig
from tora2_jax.errors import first_line
from tora2_jax.models.encoders.prior import prior_configs, prior_of, prior_sizes
from tora2_jax.system import limits
from tora2_jax.system.files import save_tensors, written_whole
from tora2_jax.types import Kind

FORMATS = (".npz", ".safetensors")
_AXES = {"dino": 2, "prior_tokens": 2, "prior_vector": 1}
_KIND = "kind"
_HEADERS = 2**16  # bytes of an archive beside its arrays
# What reading raises for files that are damaged or of another kind.
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, SafetensorError),
)


class FeatureFileError(ValueError):
    """A file that cannot be used; `problems` lists all that is wrong with it."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class ReferenceFeatures(NamedTuple):
    """What the encoders say about one reference image."""

    dino: Float[np.ndarray, "dino_tokens dino_width"]
    prior_tokens: Float[np.ndarray, "k f"] | None = None  # None: no prior, as if no face was found
    prior_vector: Float[np.ndarray, " f_vector"] | None = None
    kind: Kind | None = None  # what the prior is of; None: for the request to say


def load_features(path: str | Path) -> ReferenceFeatures:
    """Reads a file; arrays become float32.

    Raises:
        FeatureFileError: it is none of these files, or an array lacks, is too many, has a wrong
            number of axes, or holds anything but finite numbers.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise FeatureFileError([f"{path.name} is neither {' nor '.join(FORMATS)}"])
    try:
        content, kind = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except limits.TooLargeError as error:
        raise FeatureFileError([f"{path.name} cannot be used: {error}"]) from error
    except _DAMAGE as error:
        reason = first_line(error)[:200]
        raise FeatureFileError(
            [f"{path.name} is damaged, or holds more than numbers ({reason}); write it again"]
        ) from error
    problems = _content_problems(content, kind)
    if problems:
        raise FeatureFileError([f"{path.name}: {problem}" for problem in problems])
    arrays = {name: array.astype(np.float32) for name, array in content.items()}
    return ReferenceFeatures(**arrays, kind=kind)


def save_features(path: str | Path, features: ReferenceFeatures) -> None:
    """Writes a file, aside and then renamed; its suffix says which format.

    Raises:
        ValueError: the suffix is none of `FORMATS`.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} must end in {' or '.join(FORMATS)}")
    arrays = {
        name: np.ascontiguousarray(getattr(features, name), np.float32)
        for name in _AXES
        if getattr(features, name) is not None
    }
    if path.suffix == ".npz":
        # Any: NumPy's own option beside the arrays is a bool, which none of them is named as.
        content: dict[str, Any] = {**arrays}
        if features.kind is not None:
            content[_KIND] = np.array(features.kind)
        with written_whole(path) as aside, aside.open("wb") as file:
            np.savez(file, **content)
    else:
        save_tensors(path, arrays, None if features.kind is None else {_KIND: features.kind})


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    content, left = {}, limits.FEATURE_BYTES
    _check_length(path, _HEADERS)  # the list of what is in an archive may be long, too
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) > len(_AXES) + 1:
            raise ValueError(f"it holds {len(names)} arrays")
        for name in names:
            with archive.open(name) as file:
                array = limits.read_array(file, left)
            content[name.removesuffix(".npy")] = array
            left -= array.nbytes
    kind = content.pop(_KIND, None)
    return content, kind if kind is None or kind.size != 1 else str(kind.item())


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    _check_length(path)
    with safe_open(path, "numpy") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return content, (file.metadata() or {}).get(_KIND)


def _check_length(path: Path, more: int = 0) -> None:
    if path.stat().st_size > limits.FEATURE_BYTES + more:
        raise limits.TooLargeError(f"it is larger than {limits.FEATURE_BYTES >> 20} MiB")


def _content_problems(content: dict[str, np.ndarray], kind: Any) -> list[str]:
    problems = [] if "dino" in content else ["dino is missing"]
    if ("prior_tokens" in content) != ("prior_vector" in content):
        problems.append("has only one of prior_tokens and prior_vector; give both or none")
    if kind is not None and kind not in get_args(Kind):
        problems.append(f'kind must be "human" or "object", not {kind!r}')
    for name, array in content.items():
        if name not in _AXES:
            problems.append(f"{name[:40]} is not known; it may hold {', '.join(_AXES)} and {_KIND}")
        elif array.ndim != _AXES[name]:
            problems.append(f"{name} has shape {list(array.shape)}; {_AXES[name]} axes are needed")
        elif array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            problems.append(f"{name} holds values of type {array.dtype}, no real numbers")
        elif not np.isfinite(array.astype(np.float32)).all():
            problems.append(f"{name} holds numbers that are not finite")
    return problems


def load_fitting(
    paths: Sequence[Path], kind: Kind, model: ModelConfig
) -> tuple[ReferenceFeatures, ...]:
    """The features of an entity's files.

    Raises:
        FeatureFileError: lists, as `features[i]: ...`, all that cannot be read or does not fit.
    """
    found, problems = [], []
    for index, path in enumerate(paths):
        try:
            found.append(load_features(path))
            faults = [f"{path.name} {fault}" for fault in misfits(found[-1], kind, model)]
        except FeatureFileError as error:
            faults = error.problems
        problems += [f"features[{index}]: {fault}" for fault in faults]
    if problems:
        raise FeatureFileError(problems)
    return tuple(found)


def misfits(features: ReferenceFeatures, kind: Kind, model: ModelConfig) -> list[str]:
    """Why features cannot stand for a reference of an entity of this kind; empty if they can."""
    problems = []
    if features.kind is not None and features.kind != kind:
        problems.append(f'has the prior of an entity of kind "{features.kind}", not "{kind}"')
    wanted: dict[str, tuple[int, ...]] = {"dino": dino_shape(model)}
    if features.prior_tokens is None and kind == "human" and prior_of(model, kind) == "object":
        problems.append("has no prior, but this variant of the model asks for one of every human")
    if features.prior_tokens is not None:
        prior = prior_sizes(prior_configs(model)[prior_of(model, kind)])
        wanted["prior_tokens"] = (prior.tokens, prior.width)
        wanted["prior_vector"] = (prior.vector_width,)
    for name, shape in wanted.items():
        found = getattr(features, name).shape
        if found != shape:
            problems.append(
                f"{name} has shape {list(found)}, but {model.name} reads {list(shape)} for an "
                f"entity of kind {kind}"
            )
    return problems


def dino_shape(model: ModelConfig) -> tuple[int, int]:
    """Tokens and width of what DINOv2 says about a reference."""
    return (model.dino.image_size // model.dino.patch_size) ** 2, model.dino.width
