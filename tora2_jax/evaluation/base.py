"""Does a base draw what its captions say, before it is frozen? Captions alone, no conditions.

The localizer looks for every word of the toy world in what was drawn for a caption of one word;
colors are counted in what was drawn for a caption that tells one.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tora2_jax.evaluation.bench.measure import mean_estimate
from tora2_jax.evaluation.bench.networks import Localizer, locate
from tora2_jax.evaluation.requests import WORLD_SEED
from tora2_jax.media import drawing
from tora2_jax.request import Request, parse_request
from tora2_jax.sampling.pipeline import SampleSettings, Tora2Pipeline
from tora2_jax.sampling.result import to_uint8
from tora2_jax.world.captions import (
    CAPTIONS,
    COLORS,
    NEUTRAL,
    PLACES,
    Phrase,
    caption_for,
    color_name,
)
from tora2_jax.world.entities import WORDS

GOAL = 0.9  # of each share, before the base is frozen
_APART = 25.0  # of 255, per channel on average: farther from the background, a pixel is a drawing's
_SHARE = 0.02  # of the frame's pixels: fewer are no drawing


def captions(count: int, seed: int, colored: bool) -> list[tuple[str, str, str]]:
    """Caption, word and color ("" if none is told) of so many requests, the words in turn."""
    rng = np.random.default_rng((WORLD_SEED, 2, seed))
    words = [word for word, kind in WORDS if kind == "object" or not colored]
    found = []
    for number in range(count):
        word, color = words[number % len(words)], str(rng.choice(COLORS)) if colored else ""
        template = CAPTIONS[rng.integers(2 if colored else len(CAPTIONS))]
        scene = str(rng.choice(list(PLACES)))
        found.append((caption_for(template, [Phrase(word, color)], scene)[0], word, color))
    return found


def measure_base(
    pipeline: Tora2Pipeline,
    localizer: Localizer,
    requests: int,
    *,
    seed: int = 0,
    settings: SampleSettings,
    batch_size: int = 10,
    done: Callable[[int], None] = lambda _: None,
    keep: Callable[[str, np.ndarray], None] = lambda *_: None,
) -> dict[str, Any]:
    """Shares of drawings that show what was asked for.

    Args:
        pipeline: A base of the bold toy world, of stills or clips.
        localizer: Of the bench.
        requests: Of either kind of caption.
        seed: Of the captions and the noise.
        settings: How to sample.
        batch_size: Drawings at once.
        done: Told how many more are made.
        keep: Given caption and frames of every drawing.

    Returns:
        Plain JSON data: `word` (the asked word is found, and no other), `asked` (it is found),
        `others` (no other is found), `color` (the color told is among the two that cover most).
    """
    names = [word for word, _ in WORDS]
    right: dict[str, list[float]] = {"word": [], "asked": [], "others": [], "color": []}
    for colored in (False, True):
        wanted = captions(requests, seed, colored)
        for start in range(0, requests, batch_size):
            rows = wanted[start : start + batch_size]
            for (caption, word, color), video in zip(
                rows, _draw(pipeline, rows, seed + start, settings, batch_size), strict=False
            ):
                keep(caption, video)
                if colored:
                    right["color"].append(color in main_colors(video))
                    continue
                _, present = locate(localizer, video, names)
                seen = present.mean(1) >= 0.5
                asked = bool(seen[names.index(word)])
                others = seen.sum() == asked
                for name, value in (("word", asked and others), ("asked", asked)):
                    right[name].append(value)
                right["others"].append(others)
            done(len(rows))
    return {name: mean_estimate(np.array(values))._asdict() for name, values in right.items()}


def _draw(
    pipeline: Tora2Pipeline,
    rows: Sequence[tuple[str, str, str]],
    seed: int,
    settings: SampleSettings,
    size: int,
) -> UInt8[np.ndarray, "b f height width 3"]:
    """Filled up by repetition, so that one compiled shape serves all."""
    chosen = [rows[min(place, len(rows) - 1)] for place in range(size)]
    prepared = [_request(pipeline, caption) for caption, *_ in chosen]
    _, inputs = pipeline.prepare(prepared, say=lambda _: None)
    seeds = [seed + place for place in range(size)]
    return to_uint8(pipeline.generate_batch(inputs, seeds=seeds, settings=settings).video)


def _request(pipeline: Tora2Pipeline, caption: str) -> Request:
    request = {"prompt": caption, "entities": []}
    return parse_request(request, Path(), pipeline.config, pipeline.tokenizer)


def main_colors(video: UInt8[np.ndarray, "f height width 3"], count: int = 2) -> list[str]:
    """Names of the colors that cover most of what stands out from a plain background.

    Outlines, which are nearly black, do not count.
    """
    found: Counter[str] = Counter()
    for frame in video:
        background = np.median(frame.reshape(-1, 3), axis=0)
        stands_out = np.abs(frame - background).mean(-1) > _APART
        found.update(map(color_name, frame[stands_out]))
    for name in NEUTRAL:
        del found[name]
    if found.total() < _SHARE * video[..., 0].size:
        return []
    return [name for name, _ in found.most_common(count)]


def may_be_frozen(measured: dict[str, Any]) -> bool:
    """Whether both shares reach `GOAL`."""
    return all(measured[name]["mean"] >= GOAL for name in ("word", "color"))


def sheet(
    drawn: Sequence[tuple[str, UInt8[np.ndarray, "f height width 3"]]], columns: int = 6
) -> UInt8[np.ndarray, "high wide 3"]:
    """First frames, twice as large, each above its caption."""
    cells = [
        drawing.captioned(Image.fromarray(video[0].repeat(2, 0).repeat(2, 1)), caption)
        for caption, video in drawn
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return np.asarray(drawing.stacked([drawing.beside(row, 8) for row in rows], 8))


def table(measured: dict[str, Any]) -> str:
    """The measures as text."""
    told = {
        "word": "the asked word is found, and no other",
        "asked": "  it is found",
        "others": "  no other is found",
        "color": "the color told is one of the two that cover most",
    }
    lines = []
    for name, text in told.items():
        value = measured[name]
        goal = ""
        if name in ("word", "color"):
            goal = f" (goal {100 * GOAL:.0f}: {'met' if value['mean'] >= GOAL else 'missed'})"
        lines.append(f"{text:52}{100 * value['mean']:6.1f} ± {100 * value['error']:.1f} %{goal}")
    return "\n".join(lines)
