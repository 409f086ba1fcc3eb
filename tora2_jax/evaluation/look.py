"""What the toy world's bench sees in a video."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from tora2_jax.errors import CheckpointError
from tora2_jax.evaluation.bench import measure
from tora2_jax.evaluation.bench.judge import candidates, judge_entity
from tora2_jax.evaluation.bench.networks import Judge, Localizer, locate, white_square
from tora2_jax.types import Record
from tora2_jax.weights import checkpoint
from tora2_jax.world.entities import Style

_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


class Bench(NamedTuple):
    """The two networks that look at videos."""

    localizer: Localizer
    judge: Judge


class Seen(NamedTuple):
    """What the bench sees in one video of one request."""

    own_error: Float[np.ndarray, " e"]  # canvas pixels to the entity's own path
    other_error: Float[np.ndarray, " e"]  # the same to the path of another entity of the video
    distance: Float[np.ndarray, " e"]  # median over the frames that show it; NaN without such
    identified: Float[np.ndarray, " e"]  # 1 where its own reference wins among eight, else 0
    found: Float[np.ndarray, " e"]  # share of the path's frames that show the entity
    # 1 where the judge prefers the reference given to the one before the exchange, else 0.
    preferred: Float[np.ndarray, " e"]


def load_bench(localizer: str | Path, judge: str | Path) -> Bench:
    """Both networks with their weights.

    Raises:
        CheckpointError: names every file that is missing or does not fit, and how to make it.
    """
    networks, faults = [], []
    for load, path in ((load_localizer, localizer), (_load_judge, judge)):
        try:
            networks.append(load(path))
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
    return Bench(*networks)


def load_localizer(path: str | Path) -> Localizer:
    """The localizer alone; errors are those of `load_bench`."""
    return _filled(Localizer(rngs=nnx.Rngs(0)), path, "localizer")


def _load_judge(path: str | Path) -> Judge:
    return _filled(Judge(rngs=nnx.Rngs(0)), path, "judge")


def _filled(network: nnx.Module, path: str | Path, name: str) -> Any:
    """The network with the weights of a file."""
    try:
        checkpoint.merge(network, checkpoint.load_component(path)[0])
    except CheckpointError as error:
        advice = f"give --{name} FILE, or train it with configs/bench_{name}.py"
        raise CheckpointError(f"{error}\n  {advice}") from error
    return network


def look(
    bench: Bench,
    record: Record,
    video: UInt8[np.ndarray, "f height width 3"],
    seed: int,
    before: Record | None = None,
    style: Style = "patterned",
) -> Seen:
    """Compares one video with what its request asked for; an entity never seen is not identified.

    Args:
        bench: The two networks.
        record: What was asked for.
        video: What came.
        seed: Draws the seven other references of every entity.
        before: What was asked for before an exchange, with which `preferred` compares.
        style: Of the world.
    """
    height, width = video.shape[1:3]
    entities = record.entities
    centers, present = locate(bench.localizer, video, [entity.word for entity in entities])
    places = measure.to_canvas(centers, height, width)
    paths = measure.to_canvas(np.stack([entity.track for entity in entities]), height, width)
    visible = np.stack([entity.visible for entity in entities])
    identified, preferred = np.zeros(len(entities)), np.zeros(len(entities))
    for row, entity in enumerate(entities):
        options = candidates((seed, row), entity.word, entity.images[0], style)
        old = (before or record).entities[row].images[0]
        options = np.concatenate([options, white_square(old)[None]])
        scores = judge_entity(bench.judge, video, centers[row], present[row], options)
        if scores is not None:
            identified[row] = measure.found_own(scores[:-1])
            preferred[row] = scores[0] > scores[-1]
    return Seen(
        distance=_median_distance(places, present & visible, paths),
        preferred=preferred,
        own_error=measure.trajectory_error(places, present, paths, visible),
        other_error=measure.trajectory_error(places, present, paths[::-1], visible[::-1]),
        identified=identified,
        found=_share(present, visible),
    )


def _median_distance(
    places: Float[np.ndarray, "e f 2"],
    counted: Bool[np.ndarray, "e f"],
    paths: Float[np.ndarray, "e f 2"],
) -> Float[np.ndarray, " e"]:
    gaps = np.linalg.norm(places - paths, axis=-1)
    return np.array(
        [
            np.median(gap[row]) if row.any() else np.nan
            for gap, row in zip(gaps, counted, strict=True)
        ]
    )


class EntityReport(NamedTuple):
    """What the bench makes of one entity of one video."""

    found: int  # of the frames in which its path is visible, how many show it
    frames: int  # in which its path is visible
    distance: float  # median distance to its path in those that show it, px of 256; NaN: none does
    place: int | None  # of its own reference among the candidates, from 1; None: never seen
    candidates: int  # references of the same word, its own among them


def look_at_entity(
    bench: Bench,
    video: UInt8[np.ndarray, "f height width 3"],
    word: str,
    track: Float[np.ndarray, "f 2"],
    visible: Bool[np.ndarray, " f"],
    image: UInt8[np.ndarray, "height width 4"],
    style: Style = "patterned",
) -> EntityReport:
    """Where one entity of a video is found, and which reference it looks like most."""
    height, width = video.shape[1:3]
    centers, present = locate(bench.localizer, video, [word])
    places, path = (measure.to_canvas(points, height, width) for points in (centers, track[None]))
    shown = present & visible
    options = candidates((0, 0), word, image, style)
    scores = judge_entity(bench.judge, video, centers[0], present[0], options)
    place = None if scores is None else 1 + int(np.ceil(measure.rank_of_own(scores)))
    distance = float(_median_distance(places, shown, path)[0])
    return EntityReport(int(shown.sum()), int(visible.sum()), distance, place, len(options))


def told(seen: EntityReport) -> str:
    """A report as a sentence, distances on a canvas of 256 x 256 (docs/toy.md)."""
    found = f"found in {seen.found} of {seen.frames} frames"
    if seen.place is None or not seen.found:
        return f"{found}; the bench does not recognize it"
    return (
        f"{found}, there {seen.distance:.0f} px from its path (median, of 256); its own reference "
        f"comes {seen.place}{_ORDINALS.get(seen.place, 'th')} of {seen.candidates} of that word"
    )


def _share(
    present: Bool[np.ndarray, "e f"], visible: Bool[np.ndarray, "e f"]
) -> Float[np.ndarray, " e"]:
    return (present & visible).sum(-1) / np.maximum(visible.sum(-1), 1)
