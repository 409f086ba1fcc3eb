"""A first look at a folder of clips: which can be used, and what is wrong with the others."""

import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from tora2_jax.config import ModelConfig
from tora2_jax.config.train import ClipFolderConfig
from tora2_jax.data.clip_files import VIDEO_SUFFIXES, ClipFiles, list_clips, name_of
from tora2_jax.data.clip_frames import frame_numbers
from tora2_jax.data.entity_annotations import Annotation, read_annotations
from tora2_jax.data.kept_findings import KeptFindings
from tora2_jax.media.video import VideoError, VideoInfo, VideoReadError
from tora2_jax.parallel import processes
from tora2_jax.request import size_problems
from tora2_jax.trajectory import optical_flow

_AT_ONCE = 16  # clips that are looked at: mostly a wait for the disk
_GROUP = 256  # clips between two looks at the clock
_TOLD = 5  # files that are no clips, where there are no others
_SILENT = 2  # seconds without a progress bar


class Clip(NamedTuple):
    """One clip that has passed every check."""

    video: Path
    caption: str
    frames: tuple[int, ...]  # numbers in the file of the frames to use, rising
    info: VideoInfo
    entities: tuple[Annotation, ...] = ()

    @property
    def name(self) -> str:
        """What its files are called."""
        return name_of(self.video)


class Findings(NamedTuple):
    """What is in a folder of clips, and what is wrong with it."""

    clips: list[Clip]  # without a fault
    faults: list[str]  # of the settings and of the folder as a whole
    faulty: dict[str, list[str]]  # faults of single clips, by name
    passed_over: list[Path]  # files that are of no use here, by their names

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


def look_through(
    clips: ClipFolderConfig,
    model: ModelConfig,
    cache_dir: str | None = None,
    most: int | None = None,
) -> Findings:
    """Checks the settings and every clip of a folder, several at a time.

    Args:
        clips: Which folder, and what its clips must have.
        model: Sizes and frames per second.
        cache_dir: Where findings are kept: what has not changed since is not opened again.
        most: Clips without a fault after which to stop, as `clips.at_most`; None: look at all.

    Raises:
        VideoReadError: A disk or network fails; another start may do better.
    """
    faults = _size_problems(model)
    try:
        optical_flow.load_estimator(clips.estimator)
    except ValueError as error:
        faults.append(f"config.clips.estimator: {error}")
    found = Findings([], faults, {}, [])
    folder = Path(clips.folder)
    try:
        files = list_clips(folder, clips.entities is not None)
    except OSError as error:
        faults.append(f"config.clips.folder: {error}")
        return found
    found.passed_over.extend(files.passed_over)
    if not files.videos:
        suffixes = ", ".join(f"*{suffix}" for suffix in VIDEO_SUFFIXES)
        others = ", ".join(path.name for path in files.passed_over[:_TOLD])
        more = f", but {others}" if others else ""
        faults.append(f"config.clips.folder: {folder / 'videos'} holds no {suffixes}{more}")
    most = min((count for count in (most, clips.at_most) if count is not None), default=None)
    kept = KeptFindings(cache_dir, folder)
    look = partial(_clip, folder, files, kept, clips, model)
    try:
        with closing(_each(look, files.names, kept)) as looks:
            for name, (clip, wrong) in zip(files.names, looks, strict=False):
                if wrong:
                    found.faulty[name] = wrong
                else:
                    found.clips.append(clip)
                if len(found.clips) == most:
                    break
    finally:
        kept.save()
    return found


def _each(look: Callable, names: list[str], kept: KeptFindings) -> Iterator:
    """What is found at each clip, in order; what was found is saved every now and then."""
    silent = not processes.is_first()
    bar = tqdm(total=len(names), desc="looking at clips", delay=_SILENT, disable=silent)
    with ThreadPoolExecutor(_AT_ONCE) as pool, bar:
        for first in range(0, len(names), _GROUP):
            group = names[first : first + _GROUP]
            yield from pool.map(look, group)
            bar.update(len(group))
            kept.save_when_due()


def _clip(
    folder: Path,
    files: ClipFiles,
    kept: KeptFindings,
    clips: ClipFolderConfig,
    model: ModelConfig,
    name: str,
) -> tuple[Clip | None, list[str]]:
    """A clip and its faults; None where there is no video to speak of."""
    faults = list(files.faults.get(name, ()))
    video, label = files.videos.get(name), files.labels.get(name)
    entities_file = files.entities.get(name)
    if video is None:
        lone = [file for file in (label, entities_file) if file is not None]
        return None, [*faults, *(f"{file}: has no clip videos/{name}.mp4" for file in lone)]
    if label is None:
        expected = folder / "labels" / f"{name}.txt"
        faults.append(f"{expected}: is missing; its first line is the caption of {video.name}")
    caption = "" if label is None else _caption(label, faults)
    try:
        info = kept.video(video)
    except VideoError as error:
        lasting = isinstance(error.__cause__, PermissionError | FileNotFoundError)
        if isinstance(error, VideoReadError) and not lasting:
            raise  # the disk's fault; without this clip the run would be another one
        return None, [*faults, str(error)]
    frames: tuple[int, ...] = ()
    if min(model.frames, model.fps) > 0:  # else named with the sizes
        frames, wrong = frame_numbers(info, model.frames, model.fps, clips.skip_frames)
        faults += [f"{video}: {fault}" for fault in wrong]
    entities: tuple[Annotation, ...] = ()
    if clips.entities is not None:
        source = entities_file or folder / "entities" / f"{name}.json"
        smallest = clips.entities.smallest_cut
        entities, wrong = read_annotations(folder, source, caption, info, smallest, kept)
        faults += wrong
    return Clip(video, caption, frames, info, entities), faults


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
        faults.append(f"{path}: is unreadable ({error})")
        return ""
    if not lines:
        faults.append(f"{path}: is empty; its first line is the caption")
        return ""
    return unicodedata.normalize("NFC", lines[0].strip())
