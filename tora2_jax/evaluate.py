"""The toy world's bench: do generated entities follow their paths and keep their identities?

Every request is generated three times from the same noise: as asked, without its paths, and without
its references. Differences between the three are therefore due to the conditions alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from tora2_jax import checkpoint
from tora2_jax.bench import measure
from tora2_jax.bench.networks import Judge, Localiser, locate
from tora2_jax.conditioning import inputs_from_records, without_paths, without_references
from tora2_jax.config import ModelConfig
from tora2_jax.models.vae import CausalVAE
from tora2_jax.pipeline import SampleSettings, to_uint8
from tora2_jax.stages import judge as judge_room
from tora2_jax.stages import localiser as localiser_room
from tora2_jax.types import Inputs, Record
from tora2_jax.world.clips import render_clip
from tora2_jax.world.config import WorldConfig

CONDITIONS: dict[str, Callable[[Inputs], Inputs]] = {
    "full": lambda inputs: inputs,
    "without_paths": without_paths,
    "without_references": without_references,
}
GATE_PIXELS = 3.0  # canvas pixels that the localiser may miss on videos through the VAE
GATE_SHARE = 0.95  # own references that the judge must find there
WORLD_SEED = 9_000_000  # added to the seed; no training stage uses worlds from here on


class Bench(NamedTuple):
    """The two networks that look at videos."""

    localiser: Localiser
    judge: Judge


class Seen(NamedTuple):
    """What the bench sees in one video of one request."""

    own_error: Float[np.ndarray, "e"]  # canvas pixels to the entity's own path
    other_error: Float[np.ndarray, "e"]  # the same to the path of another entity of the video
    identified: Float[np.ndarray, "e"]  # 1 where its own reference wins among eight, else 0
    found: Float[np.ndarray, "e"]  # share of the path's frames that show the entity


@dataclasses.dataclass(slots=True, kw_only=True)
class Settings:
    """How the bench generates."""

    requests: int = 100
    seed: int = 0
    batch_size: int = 10
    steps: int = 50
    guidance: float = 6.0

    def __post_init__(self) -> None:
        """Raises ValueError that names every setting that is not positive."""
        wrong = [name for name in ("requests", "batch_size", "steps") if getattr(self, name) < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be at least 1")


def load_bench(localiser: str | Path, judge: str | Path) -> Bench:
    """Both networks with their weights.

    Raises:
        CheckpointError: names every file that is missing or does not fit, and how to make it.
    """
    bench = Bench(Localiser(rngs=nnx.Rngs(0)), Judge(rngs=nnx.Rngs(0)))
    faults = []
    for name, path in {"localiser": localiser, "judge": judge}.items():
        try:
            checkpoint.merge(getattr(bench, name), checkpoint.load_component(path)[0])
        except checkpoint.CheckpointError as error:
            faults.append(
                f"{error}\n  give --{name} FILE, or train it with configs/bench_{name}.py"
            )
    if faults:
        raise checkpoint.CheckpointError("\n".join(faults))
    return bench


def world_requests(model: ModelConfig, count: int, seed: int) -> list[Record]:
    """Held-out requests: two entities of different words, each with a path and one reference."""
    world = WorldConfig(
        seed=WORLD_SEED + seed,
        height=model.height,
        width=model.width,
        frames=model.frames,
        fps=model.fps,
        min_entities=2,
        max_entities=2,
        references=1,
    )
    return list(_usable(world, count))


def _usable(world: WorldConfig, count: int) -> Iterator[Record]:
    index = 0
    while count:
        record = render_clip(world, index)
        index += 1
        first, second = record.entities
        if first.visible.any() and second.visible.any():
            count -= 1
            yield record


def look(
    bench: Bench, record: Record, video: UInt8[np.ndarray, "f height width 3"], seed: int
) -> Seen:
    """Compares one video with what its request asked for; an entity never seen is not identified.

    `seed` draws the seven other references of every entity.
    """
    height, width = video.shape[1:3]
    entities = record.entities
    centres, present = locate(bench.localiser, video, [entity.word for entity in entities])
    places = measure.to_canvas(centres, height, width)
    paths = measure.to_canvas(np.stack([entity.track for entity in entities]), height, width)
    visible = np.stack([entity.visible for entity in entities])
    identified = np.zeros(len(entities))
    for row, entity in enumerate(entities):
        options = judge_room.candidates((seed, row), entity.word, entity.images[0])
        scores = judge_room.judge_entity(bench.judge, video, centres[row], present[row], options)
        identified[row] = 0.0 if scores is None else measure.found_own(scores)
    return Seen(
        own_error=measure.trajectory_error(places, present, paths, visible),
        other_error=measure.trajectory_error(places, present, paths[::-1], visible[::-1]),
        identified=identified,
        found=_share(present, visible),
    )


class EntityReport(NamedTuple):
    """What the bench makes of one entity of one video."""

    error: float  # canvas pixels to its path
    similarity: float  # cosine to its own reference; NaN if it is never seen
    others_similarity: float  # mean cosine to the other candidates of the same word
    others: int


def look_at_entity(
    bench: Bench,
    video: UInt8[np.ndarray, "f height width 3"],
    word: str,
    track: Float[np.ndarray, "f 2"],
    visible: Bool[np.ndarray, "f"],
    image: UInt8[np.ndarray, "height width 4"],
) -> EntityReport:
    """Trajectory error and reference similarity of one entity of a video."""
    height, width = video.shape[1:3]
    centres, present = locate(bench.localiser, video, [word])
    places, path = (measure.to_canvas(points, height, width) for points in (centres[0], track))
    options = judge_room.candidates((0, 0), word, image)
    scores = judge_room.judge_entity(bench.judge, video, centres[0], present[0], options)
    if scores is None:
        scores = np.full(len(options), np.nan)
    error = measure.trajectory_error(places, present[0], path, visible)
    return EntityReport(
        float(error), float(scores[0]), float(np.mean(scores[1:])), len(options) - 1
    )


def _share(
    present: Bool[np.ndarray, "e f"], visible: Bool[np.ndarray, "e f"]
) -> Float[np.ndarray, "e"]:
    return (present & visible).sum(-1) / np.maximum(visible.sum(-1), 1)


def generate_world(
    pipeline: Any, records: Sequence[Record], settings: Settings
) -> Iterator[tuple[int, str, UInt8[np.ndarray, "f height width 3"]]]:
    """Yields request number, condition and video; a request has one noise for all conditions."""
    sampling = SampleSettings(steps=settings.steps, guidance=settings.guidance)
    for start in range(0, len(records), settings.batch_size):
        # The last batch is filled up by repetition, so that one compiled shape serves all.
        rows = [min(start + row, len(records) - 1) for row in range(settings.batch_size)]
        inputs = inputs_from_records(
            pipeline.config, pipeline.tokenizer, [records[row] for row in rows]
        )
        for condition, change in CONDITIONS.items():
            sample = pipeline.generate_batch(
                change(inputs), seeds=[settings.seed + row for row in rows], settings=sampling
            )
            videos = to_uint8(sample.video)
            kept = min(settings.batch_size, len(records) - start)
            for row in range(kept):
                yield start + row, condition, videos[row]


def world(
    pipeline: Any,
    bench: Bench,
    settings: Settings,
    keep: Callable[[int, str, np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """Runs the bench; the report is plain JSON data.

    Args:
        pipeline: has `config`, `tokenizer` and `generate_batch`.
        bench: the two networks.
        settings: how many requests, and how they are generated.
        keep: is given number, condition and frames of every video, say to write it to a file.
    """
    records = world_requests(pipeline.config, settings.requests, settings.seed)
    seen: dict[str, list[Seen]] = {"ground_truth": []}
    for number, record in enumerate(records):
        seen["ground_truth"].append(look(bench, record, record.video, number))
    for number, condition, video in generate_world(pipeline, records, settings):
        seen.setdefault(condition, []).append(look(bench, records[number], video, number))
        if keep is not None:
            keep(number, condition, video)
    return report(seen, settings)


def report(seen: dict[str, list[Seen]], settings: Settings) -> dict[str, Any]:
    """Means with standard errors over requests, per condition and for paired differences."""
    measured: dict[str, Any] = {"settings": dataclasses.asdict(settings), "conditions": {}}
    for condition, rows in seen.items():
        measured["conditions"][condition] = {
            name: measure.cluster_estimate(_column(rows, name))._asdict() for name in Seen._fields
        }
    full, blind = _column(seen["full"], "own_error"), _column(seen["without_paths"], "own_error")
    gain = _column(seen["full"], "identified") - _column(seen["without_references"], "identified")
    swap = _column(seen["full"], "other_error") - full
    differences = {"paths": blind - full, "other_path": swap, "references": gain}
    measured["gains"] = {
        name: measure.cluster_estimate(values)._asdict() for name, values in differences.items()
    }
    return measured


def _column(rows: list[Seen], name: str) -> Float[np.ndarray, "requests e"]:
    return np.stack([getattr(row, name) for row in rows])


def table(measured: dict[str, Any]) -> str:
    """A report as text: errors in canvas pixels, shares in percent, each with standard error."""
    head = ("condition", "own path px", "other path px", "identified %", "found %")
    lines = ["".join(f"{title:>20}" for title in head)]
    for condition, values in measured["conditions"].items():
        cells = [_cell(values[name], name) for name in Seen._fields]
        lines.append("".join(f"{cell:>20}" for cell in (condition, *cells)))
    gains = measured["gains"]
    lines += [
        f"paths bring an entity closer to its path by {_cell(gains['paths'], '')} px",
        f"it is closer to its own than to the other path by {_cell(gains['other_path'], '')} px",
        f"references add {_cell(gains['references'], 'identified')} points of identity; "
        "chance is 12.5 %",
    ]
    return "\n".join(lines)


def _cell(estimate: dict[str, float], name: str) -> str:
    factor = 100.0 if name in ("identified", "found") else 1.0
    return f"{factor * estimate['mean']:.1f} ± {factor * estimate['error']:.1f}"


class Gate(NamedTuple):
    """Whether the bench can be trusted on what the VAE can show."""

    pixels: measure.Estimate  # canvas pixels that the localiser misses
    absent: measure.Estimate  # share of absent words rightly called absent
    present: measure.Estimate  # share of visible entities found
    identified: measure.Estimate  # share of own references found among eight

    @property
    def passed(self) -> bool:
        """Within `GATE_PIXELS` and at least `GATE_SHARE`."""
        return self.pixels.mean <= GATE_PIXELS and self.identified.mean >= GATE_SHARE


def load_vae(model: ModelConfig, path: str | Path) -> CausalVAE:
    """The VAE of a model with weights of a file; raises CheckpointError if they do not fit."""
    vae = CausalVAE(model.vae, rngs=nnx.Rngs(0))
    checkpoint.merge(vae, checkpoint.load_component(path)[0])
    return vae


@nnx.jit
def _through(
    vae: CausalVAE, video: UInt8[np.ndarray, "f height width 3"]
) -> UInt8[np.ndarray, "f height width 3"]:
    latents = vae.encode_latents(video[None].astype(jnp.float32) / 127.5 - 1.0)
    decoded = jnp.clip(vae.decode_latents(latents)[0], -1.0, 1.0)
    return jnp.round((decoded + 1.0) * 127.5).astype(jnp.uint8)


def gate(bench: Bench, vae: CausalVAE, records: Sequence[Record]) -> Gate:
    """Accuracy of both networks on true clips encoded and decoded by the VAE."""
    videos = [np.asarray(_through(vae, record.video)) for record in records]
    located = localiser_room.reliability(bench.localiser, list(records), videos)
    identified = judge_room.reliability(bench.judge, list(records), videos)
    return Gate(located.error, located.absent, located.present, identified)
