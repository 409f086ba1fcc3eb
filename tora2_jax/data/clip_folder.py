"""Clips and captions in a folder as Tora's release keeps them, and the motion that they show.

`videos/NAME.mp4` is a clip, the first line of `labels/NAME.txt` its caption. Which frames of a
clip are used depends on the clip alone; which paths, on the seed and the example's position.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from tora2_jax import conditioning
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.config.train import ClipFolderConfig, TrainConfig
from tora2_jax.data.clip_look import Clip, Findings, look_through, problems
from tora2_jax.data.loader import ExampleError
from tora2_jax.errors import TrainError
from tora2_jax.media.video import Frames, VideoError, frames_at
from tora2_jax.trajectory import optical_flow
from tora2_jax.trajectory.flow_color import color_flow, flow_map
from tora2_jax.types import Inputs

__all__ = [
    "Clip",
    "ClipExamples",
    "ClipFolder",
    "Findings",
    "look_through",
    "motion_of",
    "problems",
]

_TOLD = 20  # faults of skipped clips, and files that are passed over

# Settings on which no example depends count as these values, so that changing them encodes
# nothing again: the values of the configs in configs/, whose pools of earlier versions stay valid.
_OF_NO_EXAMPLE = {"image_dropout": 0.05, "crop_frames": 9, "crop_size": 256}
_OF_NO_INPUT = {"rematerialize": "full"}  # of the transformer


class ClipFolder:
    """The clips of a folder, cut and scaled to the size of a model.

    Args:
        clips: Which folder.
        model: Height, width, frames and frames per second.
        found: What `look_through` has found there; default: it is looked through now.

    Raises:
        TrainError: Lists everything that is wrong with the folder or the sizes; clips with a fault
            only if they are not to be skipped.
    """

    def __init__(self, clips: ClipFolderConfig, model: ModelConfig, found: Findings | None = None):
        found = look_through(clips, model) if found is None else found
        if wrong := found.problems(clips):
            raise TrainError("\n".join(wrong))
        self.clips, self.skipped, self._passed_over = found.clips, found.faulty, found.passed_over
        self._size, self._refuses = (model.width, model.height), clips.faulty == "refuse"

    def __len__(self) -> int:
        return len(self.clips)

    def warn(self) -> None:
        """Tells which clips are left out, and why, and which files are no clips."""
        if self._passed_over:
            names = [f"{path.parent.name}/{path.name}" for path in self._passed_over]
            shown = names[:_TOLD] + ["..."] * (len(names) > _TOLD)
            message = "%d files are passed over, for their names are not those of clips: %s"
            logging.warning(message, len(names), ", ".join(shown))
        if not self.skipped:
            return
        faults = [fault for found in self.skipped.values() for fault in found]
        shown = faults[:_TOLD] + [f"... and {len(faults) - _TOLD} more"] * (len(faults) > _TOLD)
        logging.warning(
            "%d of %d clips are skipped:\n  %s",
            len(self.skipped),
            len(self.skipped) + len(self.clips),
            "\n  ".join(shown),
        )

    @contextmanager
    def making_an_example(self) -> Iterator[None]:
        """Where damage comes to light that the first look could not see.

        Raises:
            TrainError: The clip is damaged, and the settings refuse faulty clips.
            ExampleError: It is damaged, and they skip them: another example can take its place.
        """
        try:
            yield
        except TrainError as error:
            if self._refuses:
                raise
            raise ExampleError(str(error)) from error

    def read(self, index: int, part: slice = slice(None)) -> Frames:
        """Frames of a clip, scaled to cover the model's picture and cropped around the middle.

        Args:
            index: Of the clip.
            part: Which of the model's frames.

        Raises:
            TrainError: The file is damaged where the first look could not see it.
        """
        numbers = self.clips[index].frames[part]
        frames = self.raw_frames(index, numbers)
        return np.stack([self.fitted(frames[number]) for number in numbers])

    def raw_frames(self, index: int, numbers: Iterable[int]) -> dict[int, np.ndarray]:
        """Frames of a clip by their number in the file, as they are there.

        Raises:
            TrainError: See `read`.
        """
        numbers = sorted(set(numbers))
        try:
            return dict(zip(numbers, frames_at(self.clips[index].video, numbers), strict=True))
        except VideoError as error:
            raise TrainError(str(error)) from error

    def fitted(self, picture: UInt8[np.ndarray, "file_height file_width *channels"]) -> np.ndarray:
        """A picture scaled to cover the model's and cropped around the middle."""
        return np.asarray(
            ImageOps.fit(Image.fromarray(picture), self._size, Image.Resampling.BICUBIC)
        )

    def fitted_points(
        self, points: Float[np.ndarray, "*n 2"], height: int, width: int
    ) -> Float[np.ndarray, "*n 2"]:
        """Where points (x, y) of a picture of that size are in the `fitted` one."""
        size, target = np.array([width, height]), np.array(self._size)
        return (points - size / 2) * (target / size).max() + target / 2


def motion_of(
    video: Frames,
    clips: ClipFolderConfig,
    estimator: optical_flow.FlowEstimator,
    rng: np.random.Generator,
) -> Float[np.ndarray, "f height width 2"]:
    """What a model is told of a clip's motion: flow of every pixel, or along some paths of it."""
    flow = optical_flow.dense_flow(estimator, video)
    kind = clips.motion
    if kind == "both":
        kind = "dense" if rng.random() < 0.5 else "sparse"
    if kind == "dense":
        return flow
    starts = optical_flow.draw_starts(flow[1], rng, clips.grid, clips.max_paths)
    return flow_map(*optical_flow.follow(flow, starts), *video.shape[1:3])


class ClipExamples:
    """A folder for the pool: every clip `clips.draws` times, with other paths each time.

    Args:
        config: Which folder, which motion, and the seed.
        model: Sizes.
        tokenizer: From `text.load_tokenizer`.
        found: See `ClipFolder`.

    Raises:
        TrainError: See `ClipFolder`.
    """

    at_once = 1  # one of full size fills a device

    def __init__(
        self, config: TrainConfig, model: ModelConfig, tokenizer, found: Findings | None = None
    ):
        self._settings, self._seed = config.clips, config.seed
        self._model, self._tokenizer = model, tokenizer
        self._folder = ClipFolder(config.clips, model, found)
        self._estimator = optical_flow.load_estimator(config.clips.estimator)

    @property
    def identity(self) -> dict:
        """See `pool.Examples`; of a video its size and time stand for its content."""
        clips = [_clip_identity(clip) for clip in self._folder.clips]
        model = self._model
        settings = {name: getattr(model, name) for name in ("height", "width", "frames", "fps")}
        transformer = to_dict(model.transformer) | _OF_NO_INPUT
        del transformer["unroll_layers"]  # pools of earlier versions do not know it
        settings |= {"transformer": transformer, "motion": model.motion is not None}
        vocabulary = sorted(self._tokenizer.vocabulary().items())
        own = to_dict(self._settings) | _OF_NO_EXAMPLE
        del own["faulty"], own["at_most"]  # show in the list of clips
        return {
            "clips": clips,
            "sizes": settings,
            "settings": {name: value for name, value in own.items() if value is not None},
            "seed": self._seed,
            "vocabulary": vocabulary,
        }

    def __len__(self) -> int:
        return len(self._folder) * self._settings.draws

    def warn(self) -> None:
        """Tells once what is left out of the folder."""
        self._folder.warn()

    def __getitem__(self, index: int) -> tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]:
        """Inputs and video of clip `index % clips`, in draw `index // clips`.

        Raises:
            TrainError, ExampleError: See `ClipFolder.making_an_example`.
        """
        draw, number = divmod(index, len(self._folder))
        with self._folder.making_an_example():
            return self._example(number, draw)

    def describe(self, index: int) -> dict[str, Any]:
        """Which clip and which draw an example is of."""
        draw, number = divmod(index, len(self._folder))
        return {"clip": self._folder.clips[number].name, "draw": draw}

    def _example(self, number: int, draw: int) -> tuple[Inputs, np.ndarray]:
        rng = np.random.Generator(
            np.random.Philox(key=[self._seed, draw * len(self._folder) + number])
        )
        video = self._folder.read(number)
        caption = self._folder.clips[number].caption
        inputs = conditioning.entity_inputs(
            self._model, self._tokenizer, caption, [], video.shape[:3]
        )
        if self._model.motion is not None:
            flow = motion_of(video, self._settings, self._estimator, rng)
            # The flow belongs to no entity in particular; the first stands for all.
            on = np.zeros_like(inputs.on)
            on[0] = True
            inputs = inputs._replace(flow_video=color_flow(flow), on=on)
        return self._with_image(inputs, video, rng), video

    def _with_image(self, inputs: Inputs, video: Frames, rng: np.random.Generator) -> Inputs:
        """The first frame in [-1, 1] with noise, as CogVideoX's I2V models are trained."""
        if not self._model.takes_image:
            return inputs
        deviation = np.exp(rng.normal(*self._settings.image_noise))
        image = video[0] / np.float32(127.5) - 1
        noise = rng.standard_normal(image.shape, np.float32)
        return inputs._replace(image=image + np.float32(deviation) * noise)


def _clip_identity(clip: Clip) -> list:
    """What stands for the frames of a clip that are used and for its caption."""
    stat, name = clip.video.stat(), unicodedata.normalize("NFC", clip.video.name)
    # Earlier versions took no account of what is changed; the rest they have encoded as it is.
    changed = [clip.info.changed] if clip.info.changed else []
    return [name, stat.st_size, stat.st_mtime_ns, clip.caption, clip.frames, *changed]
