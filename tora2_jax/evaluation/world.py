"""The toy world's bench: do generated entities follow their paths and keep their identities?

Every request is generated five times from the same noise: as asked, without its paths, without its
references, with the two entities' paths exchanged, and with other references of the same words.
Differences between them are therefore due to the conditions alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tora2_jax.conditioning import inputs_from_records
from tora2_jax.evaluation.bench.measure import cluster_estimate
from tora2_jax.evaluation.look import Bench, Seen, look
from tora2_jax.evaluation.own_looks import own_looks
from tora2_jax.evaluation.report import report
from tora2_jax.evaluation.requests import CONDITIONS, asked, style_of, world_requests
from tora2_jax.sampling.pipeline import SampleSettings
from tora2_jax.sampling.result import to_uint8
from tora2_jax.sampling.settings import DEFAULTS
from tora2_jax.types import Record


@dataclasses.dataclass(slots=True, kw_only=True)
class Settings:
    """How the bench generates."""

    requests: int = 100
    seed: int = 0
    batch_size: int = 10
    steps: int = DEFAULTS.steps
    guidance: float = DEFAULTS.guidance

    def __post_init__(self) -> None:
        """Raises ValueError that names every setting that is not positive."""
        wrong = [name for name in ("requests", "batch_size", "steps") if getattr(self, name) < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be at least 1")


def generate_world(
    pipeline: Any,
    records: Sequence[Record],
    settings: Settings,
    conditions: Sequence[str] = tuple(CONDITIONS),
) -> Iterator[tuple[int, str, Record, UInt8[np.ndarray, "f height width 3"]]]:
    """Yields request number, condition, what was asked for and the video.

    A request has one noise for all conditions.
    """
    sampling = SampleSettings(steps=settings.steps, guidance=settings.guidance)
    style = style_of(pipeline.config)
    for start in range(0, len(records), settings.batch_size):
        # The last batch is filled up by repetition, so that one compiled shape serves all.
        rows = [min(start + row, len(records) - 1) for row in range(settings.batch_size)]
        for condition in conditions:
            wanted = [asked(records[row], condition, row, style) for row in rows]
            inputs = inputs_from_records(pipeline.config, pipeline.tokenizer, wanted)
            sample = pipeline.generate_batch(
                CONDITIONS[condition](inputs),
                seeds=[settings.seed + row for row in rows],
                settings=sampling,
            )
            videos = to_uint8(sample.video)
            kept = min(settings.batch_size, len(records) - start)
            for row in range(kept):
                yield start + row, condition, wanted[row], videos[row]


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
    style = style_of(pipeline.config)
    seen: dict[str, list[Seen]] = {"ground_truth": []}
    for number, record in enumerate(records):
        seen["ground_truth"].append(look(bench, record, record.video, number, style=style))
    for number, condition, wanted, video in generate_world(pipeline, records, settings):
        found = look(bench, wanted, video, number, records[number], style)
        seen.setdefault(condition, []).append(found)
        if keep is not None:
            keep(number, condition, video)
    return report(seen, dataclasses.asdict(settings))


def one_word(pipeline: Any, settings: Settings) -> dict[str, Any]:
    """Two entities of one word: how many are at their own place with their own looks.

    Args:
        pipeline: As in `world`.
        settings: How many requests, and how they are generated.

    Returns:
        Plain JSON data: the share of entities, of the generated and of the true clips.
    """
    records = world_requests(pipeline.config, settings.requests, settings.seed, one_word=True)
    made = [video for *_, video in generate_world(pipeline, records, settings, ("full",))]
    shares = {
        name: cluster_estimate(
            np.stack([own_looks(*pair) for pair in zip(records, videos, strict=True)])
        )
        for name, videos in {"full": made, "ground_truth": [r.video for r in records]}.items()
    }
    values = {name: estimate._asdict() for name, estimate in shares.items()}
    return {"settings": dataclasses.asdict(settings), "own_place_and_looks": values}
