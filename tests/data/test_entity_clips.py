"""Folders of annotated clips: what is read of them, and what is wrong with them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.random_conditions import random_module, tiny_model
from tests.train.test_chain import TOY
from tora2_jax import conditioning
from tora2_jax.config import ModelConfig, to_dict, toy
from tora2_jax.config.train import (
    ClipFolderConfig,
    EntityClipConfig,
    ReferenceGuardConfig,
    TrainConfig,
    WeightsConfig,
)
from tora2_jax.config.world import WorldConfig
from tora2_jax.data import clip_folder, pool
from tora2_jax.data.entity_clips import EntityClips, EntityExamples, frame_tiers
from tora2_jax.data.record_files import write_record
from tora2_jax.errors import TrainError
from tora2_jax.media.video import write_image, write_video
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.text import load_tokenizer
from tora2_jax.train import loop
from tora2_jax.train.stages import diffusion
from tora2_jax.types import EntityRecord, Record
from tora2_jax.weights import checkpoint
from tora2_jax.world.clips import render_clip

WORLD = WorldConfig(seed=5, height=64, width=64, frames=9, references=2, min_entities=2)
PLAIN = ReferenceGuardConfig(
    smallest=10_000, blur=0, color=0, brightness=0, flip=0, shear=0, rotate=0, crop=1
)


def model(**changes) -> ModelConfig:
    return dataclasses.replace(toy(), **({"height": 64, "width": 64, "frames": 9} | changes))


def config(folder: Path, guards: ReferenceGuardConfig | None = None, **changes) -> TrainConfig:
    entities = EntityClipConfig(smallest_cut=8)
    clips = ClipFolderConfig(**({"folder": str(folder), "entities": entities} | changes))
    return TrainConfig(clips=clips, reference_guards=guards, model=model())


def tokenizer():
    return load_tokenizer(TOY / "tokenizer")


def assert_same_inputs(mine, theirs, tolerance: float = 2e-3):
    for name, left, right in zip(theirs._fields, mine, theirs, strict=True):
        if left is None or right is None:
            assert left is right, name
        elif left.dtype == np.float32:
            np.testing.assert_allclose(left, right, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)


def enlarged(record: Record) -> Record:
    """Twice as large, with ten columns more on both sides, every frame twice, twice as fast."""

    def large(array: np.ndarray) -> np.ndarray:
        wide = array.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        return np.pad(wide, [(0, 0), (0, 0), (10, 10)] + [(0, 0)] * (array.ndim - 3))

    entities = tuple(
        entity._replace(
            track=entity.track.repeat(2, 0) * 2 + (10, 0),
            visible=entity.visible.repeat(2),
            mask=large(entity.mask),
        )
        for entity in record.entities
    )
    return record._replace(video=large(record.video), fps=16, entities=entities)


@pytest.mark.parametrize("change", [lambda record: record, enlarged])
def test_a_written_world_clip_gives_the_same_inputs(tmp_path, change):
    for index in range(3):
        record = render_clip(dataclasses.replace(WORLD, trajectory_probability=0.7), index)
        write_record(tmp_path, change(record))
        read = EntityClips(config(tmp_path), model()).record(index)
        for mine, theirs in zip(read.entities, record.entities, strict=True):
            assert mine[:3] == theirs[:3] and mine.has_trajectory == theirs.has_trajectory
            np.testing.assert_array_equal(mine.mask, theirs.mask)
            if theirs.has_trajectory:
                np.testing.assert_array_equal(mine.visible, theirs.visible)
                seen = theirs.visible
                np.testing.assert_allclose(mine.track[seen], theirs.track[seen], atol=1e-3)
        assert read.caption == record.caption and read.fps == record.fps
        difference = np.abs(read.video.astype(int) - record.video)
        assert difference.mean() < 6  # what the codec loses
        inputs = [conditioning.record_inputs(model(), tokenizer(), one) for one in (read, record)]
        assert inputs[1].reference_mask.any() and inputs[1].word_mask.any()
        assert_same_inputs(*inputs)


def test_points_and_masks_move_as_the_picture_does(tmp_path):
    for size, (height, width) in (((48, 64), (96, 200)), ((64, 48), (150, 90))):
        frames = np.zeros((9, height, width, 3), np.uint8)
        write_video(tmp_path / "videos" / "a.mp4", frames)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / "a.txt").write_text("A dog.")
        sizes = model(height=size[0], width=size[1])
        folder = clip_folder.ClipFolder(ClipFolderConfig(folder=str(tmp_path)), sizes)
        rows, columns = np.mgrid[:height, :width] + 0.5
        ramps = np.stack([columns / width, rows / height, 0 * rows], -1)
        seen = folder.fitted(np.uint8(ramps * 250))[size[0] // 2, size[1] // 3, :2] / 250
        middle = np.array([size[1] // 3 + 0.5, size[0] // 2 + 0.5])
        place = folder.fitted_points(seen * (width, height), height, width)
        np.testing.assert_allclose(place, middle, atol=0.6)
        edges = folder.fitted_points(np.array([[0.0, 0.0], [width, height]]), height, width)
        assert (edges[0] <= 0).all() and (edges[1] >= size[::-1]).all()
        assert np.isclose(edges[1] - size[::-1], -edges[0]).all()
        assert np.isclose(edges[0], 0).any()


def numbered(folder: Path, frames: int = 45, boxes: bool = False, fps: int = 8) -> None:
    """A clip whose frames tell their number by their color; one entity, everywhere."""
    video = np.stack([np.full((64, 64, 3), 5 * number, np.uint8) for number in range(frames)])
    mask = np.zeros((frames, 64, 64), bool)
    mask[:, 8:56, 16:48] = True
    entity = EntityRecord(
        "dog", (2, 5), "object", (), np.full((frames, 2), 32.0), np.ones(frames, bool), mask
    )
    write_record(folder, Record("numbered", "A dog.", video, fps, (entity,)))
    if boxes:
        path = folder / "entities" / "numbered.json"
        data = json.loads(path.read_text())
        del data["entities"][0]["frame_masks"]
        data["entities"][0]["frame_boxes"] = [[16, 8, 48, 56]] * frames
        path.write_text(json.dumps(data))


def numbers_of(record: Record) -> list[int]:
    """Which frames the references were cut from."""
    return [round(float(image[..., :3].mean()) / 5) for image in record.entities[0].images]


@pytest.mark.parametrize("boxes", [False, True])
def test_references_come_from_frames_that_are_not_shown(tmp_path, boxes):
    numbered(tmp_path, boxes=boxes)
    clips = EntityClips(config(tmp_path, PLAIN, skip_frames=9), model(max_references=4))
    shown = clips.folder.clips[0].frames
    assert shown == tuple(range(9, 18))
    records = [clips.record(0, draw) for draw in range(40)]
    for record in records:
        assert all(image.shape == (48, 32, 4) for image in record.entities[0].images)
    numbers = {number for record in records for number in numbers_of(record)}
    # One second, 8 frames, from every frame shown.
    assert numbers <= {0, 1, *range(25, 45)} and len(numbers) > 10
    assert {len(numbers_of(record)) for record in records} == {1, 2, 3}
    near = clips.record(0).entities[0].mask
    assert near[:, 8:56, 16:48].all() and near.sum() == 9 * 48 * 32


def test_the_first_frame_is_never_a_reference_where_another_exists(tmp_path):
    numbered(tmp_path, frames=9)
    for gap in (1.0, 0.0, 0.5):
        guards = dataclasses.replace(PLAIN, frame_gap=gap)
        clips = EntityClips(config(tmp_path, guards), model())
        drawn = {n for draw in range(40) for n in numbers_of(clips.record(0, draw))}
        assert clips.folder.clips[0].frames[0] == 0 and 0 not in drawn
        assert drawn == {1.0: {8}, 0.0: set(range(1, 9)), 0.5: set(range(4, 9))}[gap]
    for mask in sorted((tmp_path / "masks").rglob("*.png"))[1:]:
        mask.unlink()
    only = EntityClips(config(tmp_path, PLAIN), model()).record(0)
    assert set(numbers_of(only)) == {0}


def test_frames_are_ranked_by_how_far_they_are_from_what_is_shown():
    tiers = frame_tiers(range(12), range(3, 8), 2)
    assert tiers == [[0, 1, 9, 10, 11], [5, 6, 7, 8], [2, 4], [3]]
    assert frame_tiers(range(3, 8), range(3, 8), 10) == [[], [], [4, 5, 6, 7], [3]]
    assert frame_tiers([2, 3], [3, 5], 0) == [[2], [], [], [3]]


def test_empty_and_small_masks_are_not_cut_from(tmp_path):
    numbered(tmp_path, frames=17)
    masks = sorted((tmp_path / "masks").rglob("*.png"))
    for path in masks:
        if path != masks[12]:
            small = np.zeros((64, 64), np.uint8)
            small[:5, :5] = 255 * (int(path.stem) % 2)
            write_image(path, small)
    for guards in (PLAIN, None):
        clips = EntityClips(config(tmp_path, guards), model())
        assert set(numbers_of(clips.record(0))) == {12}
    masks[12].unlink()
    with pytest.raises(TrainError, match=r"\[0\].frame_masks: the entity is nowhere 8 pixels"):
        EntityClips(config(tmp_path, PLAIN), model())


def test_frames_in_which_the_entity_is_in_sight_go_first(tmp_path):
    numbered(tmp_path)
    path = tmp_path / "entities" / "numbered.json"
    data = json.loads(path.read_text())
    places = data["entities"][0]["trajectory"]
    data["entities"][0]["trajectory"] = [
        p if k in (11, 30, 33) else None for k, p in enumerate(places)
    ]
    path.write_text(json.dumps(data))
    settings = config(tmp_path, PLAIN, skip_frames=9)
    drawn = {
        n for draw in range(12) for n in numbers_of(EntityClips(settings, model()).record(0, draw))
    }
    assert drawn == {30, 33}
    assert numbers_of(EntityClips(config(tmp_path, skip_frames=9), model()).record(0)) == [11]


def test_without_guards_frames_shown_are_spread_evenly(tmp_path):
    numbered(tmp_path, frames=11)
    clips = EntityClips(config(tmp_path), model(max_references=3))
    assert numbers_of(clips.record(0)) == [1, 5, 9] == numbers_of(clips.record(0, 3))
    assert (
        not EntityClips(config(tmp_path), model(personalization=None)).record(0).entities[0].images
    )


def test_own_images_and_frames_take_turns(tmp_path):
    numbered(tmp_path)
    write_image(tmp_path / "own.png", np.full((40, 40, 3), 250, np.uint8))
    path = tmp_path / "entities" / "numbered.json"
    data = json.loads(path.read_text())
    data["entities"][0]["images"] = ["own.png"]
    path.write_text(json.dumps(data))
    clips = EntityClips(config(tmp_path, PLAIN), model(max_references=4))
    own = [n == 50 for draw in range(40) for n in numbers_of(clips.record(0, draw))]
    assert 0.3 < np.mean(own) < 0.7
    assert numbers_of(EntityClips(config(tmp_path), model()).record(0)) == [50]


class Detector:
    """Finds no face, and keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, image: np.ndarray) -> list:
        self.shown.append(image)
        return []


def test_faces_are_sought_after_the_augmentation(tmp_path, monkeypatch):
    numbered(tmp_path)
    path = tmp_path / "entities" / "numbered.json"
    path.write_text(path.read_text().replace('"object"', '"human"'))
    shrunk = dataclasses.replace(PLAIN, smallest=16)
    sizes, detector = model(face_detector="insightface"), Detector()
    settings = config(tmp_path, shrunk, draws=8)
    inputs = [EntityExamples(settings, sizes, tokenizer(), detector)[k][0] for k in range(8)]
    assert len({image.shape for image in detector.shown}) > 3
    assert all(16 <= image.shape[0] <= 48 for image in detector.shown)
    assert all(one.is_human[0] and one.reference_mask.any() for one in inputs)
    assert not any(one.prior_mask.any() for one in inputs)
    monkeypatch.setattr(diffusion, "misfits", lambda *_: [])  # of weights that are not named
    settings.model, settings.tokenizer = sizes, str(TOY / "tokenizer")
    for kind, named in (("human", 1), ("object", 0)):
        path.write_text(path.read_text().replace('"human"', f'"{kind}"'))
        with pytest.raises(TrainError) as error:
            diffusion.source(settings)
        assert str(error.value).count("config.face_models: is needed") == named
    settings.face_models = str(tmp_path / "absent")  # as the config of the paper's run names one
    assert diffusion._detector(settings) is None


def test_the_motion_stage_sees_the_paths_of_the_entities(tmp_path):
    record = render_clip(WORLD, 1)
    write_record(tmp_path, record)
    sizes = model(personalization=None, max_entities=3)
    inputs, _ = EntityExamples(config(tmp_path), sizes, tokenizer(), None)[0]
    expected = conditioning.record_inputs(sizes, tokenizer(), record)
    np.testing.assert_allclose(inputs.flow_video, expected.flow_video, atol=2e-3)
    np.testing.assert_array_equal(inputs.on, expected.on)
    assert inputs.on.any() and not inputs.reference_mask.any()


def test_a_first_frame_gets_noise_that_depends_on_the_draw(tmp_path):
    write_record(tmp_path, render_clip(WORLD, 1))
    sizes = model()
    sizes.transformer.in_channels *= 2
    examples = EntityExamples(config(tmp_path, draws=2), sizes, tokenizer(), None)
    first, second = examples[0][0].image, examples[1][0].image
    assert first.shape == (64, 64, 3) and (first != second).any()
    np.testing.assert_array_equal(first, examples[0][0].image)
    assert np.abs(first - (examples[0][1][0] / 127.5 - 1)).mean() < 0.3


def test_examples_depend_on_seed_clip_and_draw_alone(tmp_path):
    guards = ReferenceGuardConfig()
    for index in (1, 2):
        write_record(tmp_path / "one", render_clip(WORLD, index))
    write_record(tmp_path / "two", render_clip(WORLD, 2))
    for video in (tmp_path / "two" / "videos").iterdir():  # x264 may encode the same frames anew
        shutil.copy(tmp_path / "one" / "videos" / video.name, video)

    def example(folder: str, index: int, **changes):
        settings = config(tmp_path / folder, guards, draws=3)
        settings = dataclasses.replace(settings, **changes)
        return EntityExamples(settings, model(), tokenizer(), None)[index][0]

    examples = EntityExamples(config(tmp_path / "one", guards, draws=3), model(), tokenizer(), None)
    assert len(examples) == 6
    draws = [examples[index][0] for index in (1, 3, 5)]
    for other in draws[1:]:
        assert (draws[0].dino_images != other.dino_images).any()
        np.testing.assert_array_equal(draws[0].flow_video, other.flow_video)
    assert_same_inputs(example("two", 1), draws[1], 0)  # without its neighbor
    assert (example("one", 1, seed=7).dino_images != draws[0].dino_images).any()
    keys = {
        pool.fingerprint(model(), EntityExamples(settings, model(), tokenizer(), None), [])
        for settings in (
            config(tmp_path / "one", guards, draws=3),
            config(tmp_path / "one", None, draws=3),
            config(tmp_path / "one", PLAIN, draws=3),
            config(tmp_path / "two", guards, draws=3),
        )
    }
    assert len(keys) == 4
    before = examples.identity
    path = tmp_path / "one" / "entities" / "world-5-1.json"
    path.write_text(path.read_text().replace('"object"', '"human"'))
    after = EntityExamples(config(tmp_path / "one", guards, draws=3), model(), tokenizer(), None)
    assert before != after.identity


def test_more_entities_than_the_model_takes_are_drawn(tmp_path):
    write_record(tmp_path, render_clip(dataclasses.replace(WORLD, min_entities=3), 0))
    clips = EntityClips(config(tmp_path), model(max_entities=2))
    shown = {tuple(one.word for one in clips.record(0, draw).entities) for draw in range(12)}
    words = [
        one.word for one in render_clip(dataclasses.replace(WORLD, min_entities=3), 0).entities
    ]
    assert shown == {(words[0], words[1]), (words[0], words[2]), (words[1], words[2])}


def tiny(folder: Path) -> tuple[ModelConfig, WeightsConfig]:
    """A model of a few thousand numbers and files of its frozen networks, random."""
    sizes = dataclasses.replace(
        tiny_model(cross_heads=2, cross_head_dim=4), height=32, width=32, frames=9
    )
    sizes.transformer.num_layers, sizes.transformer.num_heads = 1, 1
    sizes.transformer.head_dim, sizes.transformer.text_embed_dim = 16, sizes.text.width
    sizes.transformer.in_channels = sizes.transformer.out_channels = 4
    sizes.vae.channels, sizes.vae.norm_groups, sizes.vae.latent_channels = (4, 4, 4), 2, 4
    sizes.dino.image_size, sizes.dino.num_layers, sizes.dino.num_heads = 28, 1, 2
    sizes.object.image_size, sizes.motion.norm_groups = 32, 1
    networks = random_module(lambda rngs: FrozenNetworks(sizes, rngs=rngs))
    weights = WeightsConfig()
    for name in ("vae", "dino", "face", "object"):
        path = folder / f"{name}.safetensors"
        setattr(weights, name, str(path))
        arrays = flat_variables(getattr(networks, name))
        arrays |= {key: abs(value) + 0.5 for key, value in arrays.items() if key.endswith("var")}
        checkpoint.save_component(path, arrays, {"model": to_dict(sizes)})
    return sizes, weights


@pytest.mark.long
def test_the_joint_stage_trains_on_annotated_clips(tmp_path):
    sizes, weights = tiny(tmp_path)
    for index in range(2):
        write_record(tmp_path / "clips", render_clip(WORLD, index))
    settings = config(tmp_path / "clips", ReferenceGuardConfig(), draws=2)
    settings = dataclasses.replace(settings, steps=2, batch_size=2, model=sizes, weights=weights)
    settings.mesh.data = 1
    settings.cache_dir, settings.export = str(tmp_path / "cache"), str(tmp_path / "made")
    settings.tokenizer = str(TOY / "tokenizer")
    state = loop.train(settings, tmp_path / "work")
    assert int(state.step) == 2 and all(np.isfinite(v).all() for v in state.trainable.values())
    assert (tmp_path / "made" / "personalization.safetensors").is_file()
    rows = pool.Pool(next((tmp_path / "cache").glob("pool-*")))
    assert len(rows) == 4
    np.testing.assert_allclose(rows[0]["latents"], rows[2]["latents"], atol=1e-5)
    assert np.abs(rows[0]["dino"] - rows[2]["dino"]).max() > 1e-3
    assert rows[0]["reference_mask"].any() and rows[0]["on"].any()
