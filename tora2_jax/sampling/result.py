"""What comes out of sampling: videos to save, to draw the paths on, to look at in a notebook."""

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from tora2_jax import conditioning
from tora2_jax.conditioning.references import load_references
from tora2_jax.config.model import ModelConfig
from tora2_jax.media import video
from tora2_jax.references.crops import cut_out
from tora2_jax.request import Request

_SHOWN = 256  # pixels of the shorter side in a notebook


class SamplingStopped(Exception):
    """A callback has asked to stop."""


class Step(NamedTuple):
    """A step that is done, for a callback."""

    step: int  # from 1
    total: int
    clean: Float[jax.Array, "b t_lat h_lat w_lat latent"]  # what the videos would be, scaled
    decode: Callable[[jax.Array], UInt8[np.ndarray, "b f height width 3"]]

    def preview(self) -> UInt8[np.ndarray, "b f height width 3"]:
        """The videos as far as they can be foreseen; takes as long as decoding does."""
        return self.decode(self.clean)


# Called after each step; False stops, with `SamplingStopped`.
StepCallback = Callable[[Step], bool | None]


def watcher(
    callback: StepCallback | None, total: int, decode: Callable[[jax.Array], np.ndarray]
) -> Callable[[int, jax.Array], None] | None:
    """What a sampler calls after each step, with its number and clean latents; None: nothing.

    Args:
        callback: Of the user.
        total: Steps.
        decode: Latents to videos in [-1, 1].
    """
    if callback is None:
        return None

    def after(step: int, clean: jax.Array) -> None:
        seen = Step(step, total, clean, lambda latents: to_uint8(decode(latents) / 2 + 0.5))
        if callback(seen) is False:
            raise SamplingStopped(f"stopped after step {step} of {total}")

    return after


class Sample(NamedTuple):
    """The videos of a batch; b counts them.

    Attributes:
        video: In [0, 1].
        latents: Scaled, as the sampler left them.
        requests: What they are of, with all sizes; empty if they were made of plain inputs.
        model: That made them; None if they were made of plain inputs.
    """

    video: Float[np.ndarray, "b f height width 3"]
    latents: Float[np.ndarray, "b t_lat h_lat w_lat latent"]
    requests: tuple[Request, ...] = ()
    model: ModelConfig | None = None

    def frames(self, row: int = 0) -> UInt8[np.ndarray, "f height width 3"]:
        """A video as bytes."""
        return to_uint8(self.video[row])

    def overlay(self, row: int = 0) -> UInt8[np.ndarray, "f height width 3"]:
        """A video with every entity's path, word and references drawn on it, enlarged if small.

        Raises:
            ValueError: it was made of plain inputs, so the request is not known.
        """
        if self.model is None:
            raise ValueError("this sample was made of plain inputs; use `generate` with a request")
        return draw_overlay(self.frames(row), self.requests[row], self.model)

    def save(self, path: str | Path, *, overlay: bool = False) -> list[Path]:
        """Writes each video as mp4: to `NAME.mp4`, or to `NAME_0.mp4`, ... if there are several.

        Args:
            path: Must end in `.mp4`; its folder is made if needed.
            overlay: Draw paths, words and references on it.

        Returns:
            The files.

        Raises:
            VideoError: a file cannot be written.
            ValueError: see `overlay`.
        """
        path, count = Path(path), len(self.video)
        paths = [path.with_name(f"{path.stem}_{row}{path.suffix}") for row in range(count)]
        paths = paths if count > 1 else [path]
        for row, file in enumerate(paths):
            shown = self.overlay(row) if overlay else self.frames(row)
            video.write_video(file, shown, self._fps(row))
        return paths

    def _fps(self, row: int) -> float:
        return (self.requests[row].fps if self.requests else None) or 8

    def _repr_html_(self) -> str:
        """What a notebook shows: the videos, enlarged if they are small."""
        return "".join(self._html(row) for row in range(len(self.video)))

    def _html(self, row: int) -> str:
        frames = self.frames(row)
        factor = max(1, -(-_SHOWN // min(frames.shape[1:3])))
        enlarged = frames.repeat(factor, 1).repeat(factor, 2)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "video.mp4"
            video.write_video(file, enlarged, self._fps(row))
            data = base64.b64encode(file.read_bytes()).decode()
        return (
            '<video controls autoplay loop muted playsinline src="data:video/mp4;base64,'
            f'{data}"></video>'
        )


def to_uint8(frames: Float[np.ndarray, "*b f height width 3"]) -> UInt8[np.ndarray, "*b f h w 3"]:
    """A video in [0, 1] as bytes."""
    return np.round(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def draw_overlay(
    frames: UInt8[np.ndarray, "f height width 3"], wanted: Request, model: ModelConfig
) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames with every entity's path, word and references drawn on them."""
    tracks = [conditioning.request_track(entity, wanted, model) for entity in wanted.entities]
    empty = (np.zeros((0, len(frames), 2), np.float32), np.zeros((0, len(frames)), bool))
    positions, visible = (np.stack(part) for part in zip(*tracks, strict=True)) if tracks else empty
    thumbnails = [
        [cut_out(reference.image, reference.box) for reference in load_references(entity)]
        for entity in wanted.entities
    ]
    labels = [entity.word for entity in wanted.entities]
    return video.overlay(frames, positions, visible, labels, thumbnails)
