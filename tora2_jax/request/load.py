"""What to generate: requests loaded, alone or as a batch, and checked against a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tora2_jax.config.model import ModelConfig
from tora2_jax.references.feature_files import FeatureFileError, load_fitting
from tora2_jax.references.kinds import kind_of_word
from tora2_jax.request.fields import Paths
from tora2_jax.request.reader import (
    SIZES,
    EntityRequest,
    Request,
    RequestError,
    RequestReader,
    read_json,
)
from tora2_jax.system import limits
from tora2_jax.text import Tokenizer, knows_any_word, word_tokens


def load_request(
    path: str | Path,
    model: ModelConfig | None = None,
    tokenizer: Tokenizer | None = None,
    paths: Paths = "anything",
) -> Request:
    """Reads a request file.

    Args:
        path: a JSON file; paths inside it are relative to its folder.
        model: if given, its limits are checked too and its sizes fill what the file leaves out.
        tokenizer: if given with the model, words beyond its text length are found.
        paths: which files it may name: any, or, for requests of strangers, only those in its
            folder and below.

    Raises:
        RequestError: lists every problem of the file, the files it names and the model's limits.
    """
    path = Path(path)
    data = read_json(path)
    return parse_request(data, path.parent, model, tokenizer, paths)


def load_requests(
    sources: Sequence[Request | str | Path],
    model: ModelConfig | None = None,
    tokenizer=None,
    paths: Paths = "anything",
    names: Sequence[str] | None = None,
) -> list[Request]:
    """Reads or checks the requests of one batch; see `load_request`.

    Args:
        sources: files, or requests that were loaded or made by hand.
        model: see `load_request`.
        tokenizer: see `load_request`.
        paths: see `load_request`.
        names: what problems call them, if not by their files.

    Raises:
        RequestError: lists every problem of every request, after the name of its file if there are
            several; also if they differ in height, width or frames.
    """

    def load(source):
        if not isinstance(source, Request):
            return load_request(source, model, tokenizer, paths)
        if model is not None:
            validate(source, model, tokenizer)
        return source if model is None else with_defaults(source, model)

    if not sources:
        raise RequestError(["requests: there are none"])
    names = request_names(sources) if names is None else names
    requests, problems = for_each(names, sources, load)
    problems += _different_sizes(names, requests)
    if problems:
        raise RequestError(problems)
    return requests


def request_names(sources: Sequence[Request | str | Path]) -> list[str]:
    """What errors call the requests: their files, or their places in the list."""
    return [
        f"requests[{index}]" if isinstance(source, Request) else str(source)
        for index, source in enumerate(sources)
    ]


def for_each(
    names: Sequence[str], items: Sequence[Any], function: Callable[[Any], Any]
) -> tuple[list[Any], list[str]]:
    """`function` of every request, None where it fails, and the problems of all.

    Each problem stands after the name of its request if there are several.
    """
    results, problems = [], []
    for name, item in zip(names, items, strict=True):
        try:
            results.append(function(item))
        except RequestError as error:
            results.append(None)
            prefix = f"{name}: "
            problems += [
                problem if len(names) == 1 or problem.startswith(prefix) else prefix + problem
                for problem in error.problems
            ]
    return results, problems


def _different_sizes(names: Sequence[str], requests: list[Request | None]) -> list[str]:
    sizes = {
        name: f"{request.frames} frames of {request.height} x {request.width}"
        for name, request in zip(names, requests, strict=True)
        if request is not None and None not in (request.frames, request.height, request.width)
    }
    if len(set(sizes.values())) < 2:
        return []
    listing = ", ".join(f"{name} has {size}" for name, size in sizes.items())
    return [
        f"requests: those of one batch must have the same height, width and frames, but {listing}; "
        "sample them one by one"
    ]


def parse_request(
    data: Any,
    directory: str | Path,
    model: ModelConfig | None = None,
    tokenizer=None,
    paths: Paths = "anything",
) -> Request:
    """A request from the content of its file; see `load_request`.

    Args:
        data: the decoded JSON.
        directory: where relative paths start.
        model: see `load_request`.
        tokenizer: see `load_request`.
        paths: see `load_request`.
    """
    reader = RequestReader(Path(directory), paths)
    request = reader.request(data)
    if model is not None:
        reader.problems += _model_problems(with_defaults(request, model), model, tokenizer)
    if reader.problems:
        raise RequestError(reader.problems)
    return request if model is None else with_defaults(request, model)


def with_defaults(request: Request, model: ModelConfig) -> Request:
    """The request with the model's own height, width, frames and fps where it has none."""
    missing = {name: getattr(model, name) for name in SIZES if getattr(request, name) is None}
    return request._replace(**missing)


class Sizes(NamedTuple):
    """Of a video."""

    height: int  # pixels
    width: int
    frames: int


def sizes_of(source: Request | ModelConfig, model: ModelConfig) -> Sizes:
    """A request's sizes, or, where it has none, the model's."""
    return Sizes(
        model.height if source.height is None else source.height,
        model.width if source.width is None else source.width,
        model.frames if source.frames is None else source.frames,
    )


def validate(request: Request, model: ModelConfig, tokenizer=None) -> None:
    """Checks a request against what a model can make.

    Args:
        request: from `load_request` or made by hand.
        model: sizes and limits.
        tokenizer: if given, words beyond the model's text length are found.

    Raises:
        RequestError: lists every problem.
    """
    problems = [] if request.prompt.strip() else ["prompt: is empty; describe the video"]
    problems += [
        f'entities[{index}].word: the place of "{entity.word}" in the prompt is not given (span)'
        for index, entity in enumerate(request.entities)
        if entity.span is None
    ]
    problems += [
        f"entities[{index}].{name}: {len(values)} for {len(entity.images)} images; give one for "
        "each image, or none"
        for index, entity in enumerate(request.entities)
        for name in ("masks", "boxes", "faces")
        if len(values := getattr(entity, name)) not in (0, len(entity.images))
    ]
    problems += _model_problems(with_defaults(request, model), model, tokenizer)
    if problems:
        raise RequestError(problems)


def _model_problems(request: Request, model: ModelConfig, tokenizer) -> list[str]:
    problems = size_problems(request, model)
    takes_image = model.takes_image
    if takes_image and request.image is None:
        problems.append(f"image: {model.name} starts from an image; name its file")
    if request.image is not None and not takes_image:
        problems.append(f"image: {model.name} takes no first frame; remove it or use an I2V model")
    if len(request.entities) > model.max_entities:
        problems.append(
            f"entities: {len(request.entities)} are too many; {model.name} takes at most "
            f"{model.max_entities}"
        )
    if tokenizer is not None and request.prompt and not knows_any_word(tokenizer, request.prompt):
        problems.append(
            "prompt: the tokenizer knows none of its words, so it would have no effect; published "
            "models read English"
        )
    for index, entity in enumerate(request.entities):
        problems += _entity_problems(entity, f"entities[{index}]", request, model, tokenizer)
    return problems


def size_problems(sizes: Request | ModelConfig, model: ModelConfig) -> list[str]:
    """Why a model cannot make videos of this height, width and frames; empty if it can."""
    height, width, frames = sizes_of(sizes, model)
    problems = _side_problems("height", height, model.transformer.sample_height, model)
    problems += _side_problems("width", width, model.transformer.sample_width, model)
    # An even number of latent frames decodes to other frames than were asked for, as in diffusers.
    chunk = model.vae.temporal_compression * model.vae.latents_per_decode_chunk
    if frames < 1 or (frames - 1) % chunk:
        nearest = max(1, round((frames - 1) / chunk) * chunk + 1)
        problems.append(
            f"frames: {frames} is not a multiple of {chunk} plus 1; the nearest is {nearest}"
        )
    pixels = frames * height * width
    if not problems and pixels > limits.VIDEO_PIXELS:
        problems.append(
            f"frames, height, width: {frames} frames of {height} x {width} are "
            f"{pixels} pixels; take at most {limits.VIDEO_PIXELS}"
        )
    return problems


def _side_problems(name: str, value: int, sample: int, model: ModelConfig) -> list[str]:
    """Problems of a height or width; `sample` is the model's own, in latents."""
    multiple = model.spatial_multiple
    if model.transformer.learned_positions:
        fixed = sample * model.spatial_compression
        return (
            [f"{name}: {value} must be {fixed}, as {model.name} learned"] if value != fixed else []
        )
    if value < 1 or value % multiple:
        nearest = max(multiple, round(value / multiple) * multiple)
        return [f"{name}: {value} is not a multiple of {multiple}; the nearest is {nearest}"]
    largest = sample // model.transformer.patch_size * multiple
    if model.transformer.patch_size_t and value > largest:
        return [f"{name}: {value} is too large; {model.name} takes at most {largest}"]
    return []


def _entity_problems(
    entity: EntityRequest, field: str, request: Request, model: ModelConfig, tokenizer
) -> list[str]:
    problems = _reference_problems(entity, field, model)
    if any(face is not None for face in entity.faces) and model.face_detector == "mask_top":
        problems.append(f"{field}.faces: {model.name} takes heads from the mask; remove it")
    if entity.points is not None and model.motion is None:
        problems.append(f"{field}.trajectory: {model.name} takes no trajectories")
    if tokenizer is not None and entity.span is not None:
        length = model.transformer.max_text_length
        limit = model.binding.word_tokens
        if word_tokens(tokenizer, request.prompt, entity.span, length, limit) is None:
            problems.append(
                f'{field}.word: "{entity.word}" stands after the first {length - 1} tokens of the '
                "prompt, where the text is cut off; name it earlier or shorten the prompt"
            )
    return problems


def _reference_problems(entity: EntityRequest, field: str, model: ModelConfig) -> list[str]:
    images, features = len(entity.images), len(entity.features)
    problems = []
    if images + features > model.max_references:
        name, told = (
            ("features", f"{images} images and {features} files")
            if features
            else ("images", str(images))
        )
        problems.append(
            f"{field}.{name}: {told} are too many; {model.name} takes at most "
            f"{model.max_references} per entity"
        )
    if model.personalization is None:
        given = {"images": images, "features": features}
        return problems + [
            f"{field}.{name}: {model.name} takes no reference images"
            for name, count in given.items()
            if count
        ]
    kind = kind_of_word(entity.word) if entity.kind == "auto" and not images else entity.kind
    if features and kind != "auto":
        try:
            load_fitting(entity.features, kind, model)
        except FeatureFileError as error:
            problems += [f"{field}.{problem}" for problem in error.problems]
    return problems
