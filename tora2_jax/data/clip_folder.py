"""Clips and captions in a folder as Tora's release keeps them, and the motion that they show.

`videos/NAME.mp4` is a clip, the first line of `labels/NAME.txt` its caption. Which frames of a
clip are used depends on the clip alone; which paths, on the seed and the example's position.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from tora2_jax import conditioning, optical_flow
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.flow_color import color_flow, flow_map
from tora2_jax.request import size_problems
from tora2_jax.train_config import ClipFolderConfig, TrainConfig, TrainError
from tora2_jax.types import Inputs
from tora2_jax.video import Frames, VideoError, frames_at, video_length


class Clip(NamedTuple):
    """One clip that has passed every check."""

    video: Path
    caption: str
    frames: tuple[int, ...]  # numbers in the file of the frames to use, rising


def problems(clips: ClipFolderConfig, model: ModelConfig) -> list[str]:
    """Everything that is wrong with a folder of clips and the sizes that are asked of it."""
    return _checked(clips, model)[1]


class ClipFolder:
    """The clips of a folder, cut and scaled to the size of a model.

    Args:
        clips: Which folder.
        model: Height, width, frames and frames per second.

    Raises:
        TrainError: Lists everything that is wrong with the folder or the sizes.
    """

    def __init__(self, clips: ClipFolderConfig, model: ModelConfig):
        self.clips, found = _checked(clips, model)
        if found:
            raise TrainError("\n".join(found))
        self._size = (model.width, model.height)

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, index: int, part: slice = slice(None)) -> Frames:
        """Frames of a clip, scaled to cover the model's picture and cropped around the middle.

        Args:
            index: Of the clip.
            part: Which of the model's frames.

        Raises:
            TrainError: The file is damaged where the first look could not see it.
        """
        clip = self.clips[index]
        try:
            frames = list(frames_at(clip.video, clip.frames[part]))
        except VideoError as error:
            raise TrainError(str(error)) from error
        return np.stack([self._fitted(frame) for frame in frames])

    def _fitted(self, frame: np.ndarray) -> np.ndarray:
        picture = ImageOps.fit(Image.fromarray(frame), self._size, Image.Resampling.BICUBIC)
        return np.asarray(picture)


def _checked(clips: ClipFolderConfig, model: ModelConfig) -> tuple[list[Clip], list[str]]:
    found, faults = [], _size_problems(model)
    try:
        optical_flow.load_estimator(clips.estimator)
    except ValueError as error:
        faults.append(f"config.clips.estimator: {error}")
    folder = Path(clips.folder)
    videos = {path.stem: path for path in (folder / "videos").glob("*.mp4")}
    labels = {path.stem: path for path in (folder / "labels").glob("*.txt")}
    if not videos:
        faults.append(f"config.clips.folder: {folder / 'videos'} holds no *.mp4")
    for name in sorted(videos.keys() | labels.keys()):
        if name not in videos:
            faults.append(f"{labels[name]}: has no clip videos/{name}.mp4")
            continue
        caption = _caption(folder / "labels" / f"{name}.txt", faults)
        numbers = _frame_numbers(videos[name], model, clips.skip_frames, faults)
        found.append(Clip(videos[name], caption, numbers))
    return found, faults


def _size_problems(model: ModelConfig) -> list[str]:
    """A clip is a video that the model must be able to make, and has a motion to show."""
    faults = [f"config.model.{problem}" for problem in size_problems(model, model)]
    if model.frames == 1:
        faults.append("config.model.frames: 1 is a picture; motion needs more")
    if model.fps < 1:
        faults.append(f"config.model.fps: {model.fps} must be positive")
    return faults


def _caption(path: Path, faults: list[str]) -> str:
    try:
        lines = path.read_text(encoding="utf-8-sig").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "is missing" if isinstance(error, FileNotFoundError) else f"is unreadable ({error})"
        )
        faults.append(f"{path}: {reason}")
        return ""
    if not lines:
        faults.append(f"{path}: is empty; its first line is the caption")
        return ""
    return lines[0].strip()


def _frame_numbers(path: Path, model: ModelConfig, skip: int, faults: list[str]) -> tuple[int, ...]:
    """The frames nearest to the model's times; `skip` of them are left out at each end if spare."""
    if min(model.frames, model.fps) < 1:
        return ()  # named with the sizes
    try:
        length, fps = video_length(path)
    except VideoError as error:
        faults.append(str(error))
        return ()
    numbers = np.round(np.arange(model.frames) * (fps / model.fps)).astype(int)
    spare = length - 1 - numbers[-1]
    if (np.diff(numbers) < 1).any():
        faults.append(f"{path}: shows {fps:g} frames per second, fewer than {model.fps}")
    if spare < 0:
        faults.append(
            f"{path}: has {length} frames at {fps:g} per second; {model.frames} frames at "
            f"{model.fps} per second take {numbers[-1] + 1}"
        )
    return tuple((numbers + min(skip, spare // 2)).tolist())


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

    Raises:
        TrainError: See `ClipFolder`.
    """

    at_once = 1  # one of full size fills a device

    def __init__(self, config: TrainConfig, model: ModelConfig, tokenizer):
        self._settings, self._seed = config.clips, config.seed
        self._model, self._tokenizer = model, tokenizer
        self._folder = ClipFolder(config.clips, model)
        self._estimator = optical_flow.load_estimator(config.clips.estimator)

    @property
    def identity(self) -> dict:
        """See `pool.Examples`; of a video its size and time stand for its content."""
        clips = [
            [clip.video.name, clip.video.stat().st_size, clip.video.stat().st_mtime_ns, *clip[1:]]
            for clip in self._folder.clips
        ]
        model = self._model
        settings = {name: getattr(model, name) for name in ("height", "width", "frames", "fps")}
        settings |= {"transformer": to_dict(model.transformer), "motion": model.motion is not None}
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        return {
            "clips": clips,
            "sizes": settings,
            "settings": to_dict(self._settings),
            "seed": self._seed,
            "vocabulary": vocabulary,
        }

    def __len__(self) -> int:
        return len(self._folder) * self._settings.draws

    def __getitem__(self, index: int) -> tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]:
        """Inputs and video of clip `index % clips`, in draw `index // clips`."""
        rng = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        number = index % len(self._folder)
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
        if self._model.takes_image:
            inputs = inputs._replace(image=self._noisy_image(video[0], rng))
        return inputs, video

    def _noisy_image(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The first frame in [-1, 1] with noise, as CogVideoX's I2V models are trained."""
        deviation = np.exp(rng.normal(*self._settings.image_noise))
        image = frame / np.float32(127.5) - 1
        return image + np.float32(deviation) * rng.standard_normal(frame.shape, np.float32)
