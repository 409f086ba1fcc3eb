"""Annotated clips as records, and as examples for the pool (docs/entity_clips.md).

Everything about a record is a function of the seed, the name of its clip and the draw.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8

from tora2_jax import conditioning
from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.config.train import TrainConfig
from tora2_jax.data.clip_folder import Clip, ClipExamples, ClipFolder, Findings, look_through
from tora2_jax.data.entity_annotations import Annotation, box_size
from tora2_jax.data.reference_augmentation import augment, draw_count, generator
from tora2_jax.errors import TrainError
from tora2_jax.references.crops import cut_out
from tora2_jax.references.faces import FaceDetector, detector_identity
from tora2_jax.text import word_tokens
from tora2_jax.types import EntityRecord, Inputs, Record

_SLOT_OF_CLIP = 1 << 20  # beyond the entities: chance that belongs to the clip
_TOLD = 20  # words that are not seen


class _Choice(NamedTuple):
    """Where the references of one entity come from, before anything is decoded."""

    entity: Annotation
    sources: tuple[int, ...]  # numbers of frames; -1 - k is the entity's own image k
    rng: np.random.Generator | None  # for the augmentation; None: there is none


class EntityClips:
    """The annotated clips of a folder as records.

    Args:
        config: Which folder, the guards and the seed.
        model: Sizes; references are read only if it has a personalization path.

    Raises:
        TrainError: See `ClipFolder`.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig, folder: ClipFolder | None = None):
        if folder is None:
            found = look_through(config.clips, model, config.cache_dir)
            folder = ClipFolder(config.clips, model, found)
        self.folder = folder
        self._smallest = config.clips.entities.smallest_cut
        self._guards, self._seed, self._model = config.reference_guards, config.seed, model

    def record(self, number: int, draw: int = 0) -> Record:
        """Clip `number` with references chosen anew for every draw.

        Raises:
            TrainError: A file is damaged where the first look could not see it.
        """
        clip = self.folder.clips[number]
        try:
            choices = [self._choice(clip, slot, draw) for slot in self._entities(clip, draw)]
            wanted = {source for choice in choices for source in choice.sources if source >= 0}
            frames = self.folder.raw_frames(number, wanted.union(clip.frames))
            entities = [self._entity(clip, choice, frames) for choice in choices]
        except ValueError as error:
            raise TrainError(str(error)) from error
        video = np.stack([self.folder.fitted(frames[frame]) for frame in clip.frames])
        return Record(clip.name, clip.caption, video, self._model.fps, tuple(entities))

    def _entities(self, clip: Clip, draw: int) -> list[int]:
        """All entities, or as many as the model takes, drawn at random."""
        count, most = len(clip.entities), self._model.max_entities
        if count <= most:
            return list(range(count))
        rng = generator(self._seed, clip.name, draw, _SLOT_OF_CLIP)
        return sorted(rng.choice(count, most, replace=False).tolist())

    def _choice(self, clip: Clip, slot: int, draw: int) -> _Choice:
        entity, most = clip.entities[slot], self._model.max_references
        if self._model.personalization is None:
            return _Choice(entity, (), None)
        size = (clip.info.height, clip.info.width)

        def usable(frame: int) -> bool:
            return box_size(entity.mask(frame, *size)) >= self._smallest

        if self._guards is None:
            return _Choice(entity, _plain_sources(entity, clip.frames, most, usable), None)
        rng = generator(self._seed, clip.name, draw, slot)
        gap = self._guards.frame_gap * clip.info.fps
        tiers = _all_tiers(entity, clip.frames, gap, clip.info.position)
        count = draw_count(self._guards, most, rng)
        drawn = [_draw_source(entity, tiers, usable, rng) for _ in range(count)]
        return _Choice(entity, tuple(source for source in drawn if source is not None), rng)

    def _entity(self, clip: Clip, choice: _Choice, frames: dict[int, np.ndarray]) -> EntityRecord:
        entity, used = choice.entity, list(clip.frames)
        images = [
            _cut_from(frames[source], entity.mask(source, *frames[source].shape[:2]))
            if source >= 0
            else entity.own_image(-1 - source)
            for source in choice.sources
        ]
        if choice.rng is not None:
            images = [
                augment(image, entity.asked.kind, self._guards, choice.rng) for image in images
            ]
        height, width = frames[used[0]].shape[:2]
        masks = None
        if entity.seen:
            whole = [entity.mask(frame, height, width) for frame in used]
            masks = np.stack(
                [self.folder.fitted(mask.astype(np.uint8) * 255) > 127 for mask in whole]
            )
        track, visible = self._track(entity, used, height, width)
        return EntityRecord(
            word=clip.caption[slice(*entity.asked.span)],
            span=entity.asked.span,
            kind=entity.asked.kind,
            images=tuple(images),
            track=track,
            visible=visible,
            mask=masks,
            has_trajectory=entity.track is not None,
        )

    def _track(self, entity: Annotation, used: list[int], height: int, width: int):
        """The path in the model's picture; not visible where the crop has cut it away."""
        if entity.track is None:
            return np.zeros((len(used), 2), np.float32), np.zeros(len(used), bool)
        visible = entity.visible[used]
        points = np.where(visible[:, None], entity.track[used], 0)
        track = self.folder.fitted_points(points, height, width)
        inside = ((track >= 0) & (track <= (self._model.width, self._model.height))).all(-1)
        visible = visible & inside
        return np.where(visible[:, None], track, 0).astype(np.float32), visible


def frame_tiers(
    seen: Sequence[int],
    shown: Sequence[int],
    gap: float,
    position: Callable[[int], float] = float,
) -> list[list[int]]:
    """Frames to cut references from, the best first: away from all shown, from the first, others.

    Args:
        seen: Frames in which the entity can be cut out.
        shown: Frames of the video that the model learns, rising.
        gap: Frames that "far" means; a frame beside a shown one looks like it.
        position: Which frame it would be if the clip's rate did not vary.

    Returns:
        Three lists without overlap, and the first shown frame alone in a fourth.
    """
    first, last = position(shown[0]), position(shown[-1])
    far = max(gap, 1)
    tiers: list[list[int]] = [[], [], [], []]
    for frame in seen:
        place = position(frame)
        if frame == shown[0]:
            tier = 3
        elif place <= first - far or place >= last + far:
            tier = 0
        else:
            tier = 1 if abs(place - first) >= far else 2
        tiers[tier].append(frame)
    return tiers


def _all_tiers(
    entity: Annotation, shown: Sequence[int], gap: float, position: Callable[[int], float]
) -> list[list[int]]:
    """Frames in which the path says that the entity is in sight, then those in which it may hide;
    the first frame shown comes last."""
    hidden = [frame for frame in entity.seen if not entity.visible[frame]]
    visible = [frame for frame in entity.seen if entity.visible[frame]]
    *best, first = frame_tiers(visible, shown, gap, position)
    *rest, hidden_first = frame_tiers(hidden, shown, gap, position)
    return [*best, *rest, first, hidden_first]


def _draw_source(entity: Annotation, tiers, usable, rng: np.random.Generator) -> int | None:
    """An image of its own or a frame, by even chance where there are both."""
    own = len(entity.asked.images)
    if own and (not entity.seen or rng.random() < 0.5):
        return -1 - int(rng.integers(own))
    for tier in tiers:
        left = list(tier)
        while left:
            frame = left.pop(rng.integers(len(left)))
            if usable(frame):
                return frame
    return None


def _plain_sources(entity: Annotation, shown: Sequence[int], most: int, usable) -> tuple[int, ...]:
    """Without guards: the entity's own images; if it has none, evenly spread frames shown."""
    if entity.asked.images:
        return tuple(-1 - k for k in range(min(len(entity.asked.images), most)))
    seen = [frame for frame in entity.seen if usable(frame)]
    seen = [frame for frame in seen if frame in shown] or seen
    seen = [frame for frame in seen if entity.visible[frame]] or seen
    if not seen:
        return ()
    places = np.unique(np.linspace(0, len(seen) - 1, most).round().astype(int))
    return tuple(seen[place] for place in places)


def _cut_from(frame: np.ndarray, mask: np.ndarray) -> UInt8[np.ndarray, "box_height box_width 4"]:
    return cut_out(np.dstack([frame, mask.astype(np.uint8) * 255]))


class EntityExamples(ClipExamples):
    """Annotated clips for the pool: every clip `clips.draws` times, with other references.

    Args:
        config: Which folder, the guards and the seed.
        model: Sizes.
        tokenizer: From `text.load_tokenizer`.
        detector: Finds faces where `model.face_detector` needs a network.
        found: See `ClipFolder`.

    Raises:
        TrainError: See `ClipFolder`.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        tokenizer,
        detector: FaceDetector | None,
        found: Findings | None = None,
    ):
        super().__init__(config, model, tokenizer, found)
        self._records = EntityClips(config, model, self._folder)
        self._guards, self._detector = config.reference_guards, detector

    @property
    def identity(self) -> dict:
        """See `ClipExamples.identity`."""
        entities = [[one.fingerprint for one in clip.entities] for clip in self._folder.clips]
        own = {"entities": entities, "personalization": self._model.personalization is not None}
        guards = None if self._guards is None else to_dict(self._guards)
        if guards is not None:  # as pools of earlier versions know it
            guards["colour"] = guards.pop("color")
        own |= {"face_detector": self._model.face_detector, "guards": guards}
        if found_by := detector_identity(self._model.face_detector, self._detector):
            own["face_detector_file"] = found_by
        return super().identity | own

    def warn(self) -> None:
        """Tells once what is left out of the folder, and which words are not seen."""
        super().warn()
        length, limit = self._model.transformer.max_text_length, self._model.binding.word_tokens
        unseen = [
            f"{clip.name}: {entity.asked.word}"
            for clip in self._folder.clips
            for entity in clip.entities
            if word_tokens(self._tokenizer, clip.caption, entity.asked.span, length, limit) is None
        ]
        if unseen:
            logging.warning(
                "%d words stand after the first %d tokens of their captions, where the text is cut "
                "off; they stay unseen: %s",
                len(unseen),
                length - 1,
                ", ".join(unseen[:_TOLD]) + ", ..." * (len(unseen) > _TOLD),
            )

    def _example(self, number: int, draw: int) -> tuple[Inputs, np.ndarray]:
        record = self._records.record(number, draw)
        inputs = conditioning.record_inputs(self._model, self._tokenizer, record, self._detector)
        rng = generator(self._seed, record.id, draw, _SLOT_OF_CLIP + 1)
        return self._with_image(inputs, record.video, rng), record.video
