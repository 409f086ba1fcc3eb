"""Clips and captions in a folder as Tora's release keeps them, and the motion that they show.

`videos/NAME.mp4` is a clip, the first line of `labels/NAME.txt` its caption. Which frames of a
clip are used depends on the clip alone; which paths, on the seed and the example's position.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from tora2_jax import conditioning, optical_flow
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.data.entity_annotations import Annotation, read_annotations
from tora2_jax.data.loader import ExampleError
from tora2_jax.flow_color import color_flow, flow_map
from tora2_jax.request import size_problems
from tora2_jax.train_config import ClipFolderConfig, TrainConfig, TrainError
from tora2_jax.types import Inputs
from tora2_jax.video import Frames, VideoError, VideoInfo, frames_at, video_info

_TOLD = 20  # faults of skipped clips

# Settings on which no example depends count as these values, so that changing them encodes
# nothing again: the values of the configs in configs/, whose pools of earlier versions stay valid.
_OF_NO_EXAMPLE = {"image_dropout": 0.05, "crop_frames": 9, "crop_size": 256}
_OF_NO_INPUT = {"rematerialize": "full"}  # of the transformer


class Clip(NamedTuple):
    """One clip that has passed every check."""

    video: Path
    caption: str
    frames: tuple[int, ...]  # numbers in the file of the frames to use, rising
    info: VideoInfo
    entities: tuple[Annotation, ...] = ()


class Findings(NamedTuple):
    """What is in a folder of clips, and what is wrong with it."""

    clips: list[Clip]  # without a fault
    faults: list[str]  # of the settings and of the folder as a whole
    faulty: dict[str, list[str]]  # faults of single clips, by name

    @property
    def shows_humans(self) -> bool:
        """Whether a usable clip has a human among its entities."""
        kinds = {entity.asked.kind for clip in self.clips for entity in clip.entities}
        return "human" in kinds

    def problems(self, settings: ClipFolderConfig) -> list[str]:
        """What keeps the folder from being used; clips with a fault only if they must not be
        skipped, or if no other is left."""
        told = settings.faulty == "refuse" or not self.clips
        return [*self.faults, *(told * [line for lines in self.faulty.values() for line in lines])]


def problems(clips: ClipFolderConfig, model: ModelConfig) -> list[str]:
    """Everything that keeps a folder of clips from being used in the sizes that are asked of it."""
    return look_through(clips, model).problems(clips)


def look_through(clips: ClipFolderConfig, model: ModelConfig) -> Findings:
    """Checks the settings and every clip of a folder."""
    faults = _size_problems(model)
    try:
        optical_flow.load_estimator(clips.estimator)
    except ValueError as error:
        faults.append(f"config.clips.estimator: {error}")
    folder = Path(clips.folder)
    names = _names(folder / "videos", "mp4")
    beside = _names(folder / "labels", "txt")
    if clips.entities is not None:
        beside |= _names(folder / "entities", "json")
    if not names:
        faults.append(f"config.clips.folder: {folder / 'videos'} holds no *.mp4")
    found = Findings([], faults, {})
    for name in sorted(names | beside):
        wrong: list[str] = []
        clip = _clip(folder, name, clips, model, wrong)
        if wrong:
            found.faulty[name] = wrong
        else:
            found.clips.append(clip)
    return found


def _names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*.{suffix}")}


def _clip(
    folder: Path, name: str, clips: ClipFolderConfig, model: ModelConfig, faults: list[str]
) -> Clip | None:
    video = folder / "videos" / f"{name}.mp4"
    if not video.exists():
        places = (("labels", "txt"), ("entities", "json"))
        files = [folder / part / f"{name}.{suffix}" for part, suffix in places]
        faults += [f"{file}: has no clip videos/{name}.mp4" for file in files if file.exists()]
        return None
    caption = _caption(folder / "labels" / f"{name}.txt", faults)
    try:
        info = video_info(video)
    except VideoError as error:
        faults.append(str(error))
        return None
    frames = _frame_numbers(video, info, model, clips.skip_frames, faults)
    entities: tuple[Annotation, ...] = ()
    if clips.entities is not None:
        smallest = clips.entities.smallest_cut
        entities, wrong = read_annotations(folder, name, caption, info, smallest)
        faults += wrong
    return Clip(video, caption, frames, info, entities)


class ClipFolder:
    """The clips of a folder, cut and scaled to the size of a model.

    Args:
        clips: Which folder.
        model: Height, width, frames and frames per second.

    Raises:
        TrainError: Lists everything that is wrong with the folder or the sizes; clips with a fault
            only if they are not to be skipped.
    """

    def __init__(self, clips: ClipFolderConfig, model: ModelConfig):
        found = look_through(clips, model)
        if wrong := found.problems(clips):
            raise TrainError("\n".join(wrong))
        self.clips, self.skipped = found.clips, found.faulty
        self._size, self._refuses = (model.width, model.height), clips.faulty == "refuse"

    def __len__(self) -> int:
        return len(self.clips)

    def warn(self) -> None:
        """Tells which clips are left out, and why."""
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


def _frame_numbers(
    path: Path, video: VideoInfo, model: ModelConfig, skip: int, faults: list[str]
) -> tuple[int, ...]:
    """The frames nearest to the model's times; `skip` of them are left out at each end if spare."""
    if min(model.frames, model.fps) < 1:
        return ()  # named with the sizes
    numbers = np.round(np.arange(model.frames) * (video.fps / model.fps)).astype(int)
    spare = video.frames - 1 - numbers[-1]
    if (np.diff(numbers) < 1).any():
        faults.append(f"{path}: shows {video.fps:g} frames per second, fewer than {model.fps}")
    if spare < 0:
        faults.append(
            f"{path}: has {video.frames} frames at {video.fps:g} per second; {model.frames} frames "
            f"at {model.fps} per second take {numbers[-1] + 1}"
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
            [*_file_identity(clip.video), clip.caption, clip.frames] for clip in self._folder.clips
        ]
        model = self._model
        settings = {name: getattr(model, name) for name in ("height", "width", "frames", "fps")}
        transformer = to_dict(model.transformer) | _OF_NO_INPUT
        settings |= {"transformer": transformer, "motion": model.motion is not None}
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        own = to_dict(self._settings) | _OF_NO_EXAMPLE
        del own["faulty"]  # shows in the list of clips
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
        return {"clip": self._folder.clips[number].video.stem, "draw": draw}

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


def _file_identity(path: Path) -> list:
    """What stands for the content of a large file."""
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns]
