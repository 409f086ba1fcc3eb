"""The toy world: same seed, same clip; and its ground truth agrees with its pixels."""

import dataclasses

import numpy as np
import pytest

from tora2_jax.config import from_dict, to_dict, toy
from tora2_jax.config.world import WorldConfig
from tora2_jax.references.crops import mask_top_face, prepare
from tora2_jax.world.clips import (
    WORDS,
    caption_corpus,
    render_clip,
    render_reference,
    sample_entity,
)

CONFIG = WorldConfig()
CLIPS = range(24)


@pytest.fixture(scope="module")
def clips():
    return [render_clip(CONFIG, index) for index in CLIPS]


def test_a_clip_is_a_function_of_seed_and_index(clips):
    again = render_clip(CONFIG, 3)
    assert again.caption == clips[3].caption
    np.testing.assert_array_equal(again.video, clips[3].video)
    np.testing.assert_array_equal(again.flow, clips[3].flow)
    for one, other in zip(again.entities, clips[3].entities, strict=True):
        np.testing.assert_array_equal(one.track, other.track)
        for image, same in zip(one.images, other.images, strict=True):
            np.testing.assert_array_equal(image, same)


def test_another_seed_is_another_world(clips):
    held_out = render_clip(dataclasses.replace(CONFIG, seed=1), 3)
    assert np.any(held_out.video != clips[3].video)
    first, second = sample_entity((0, 3), "fish"), sample_entity((1, 3), "fish")
    for name in ("shape", "colors", "pattern", "face"):
        assert np.all(getattr(first, name)[:3] != getattr(second, name)[:3])


def test_forms_of_the_record(clips):
    size = (CONFIG.frames, CONFIG.height, CONFIG.width)
    for clip in clips:
        assert clip.video.shape == (*size, 3) and clip.video.dtype == np.uint8
        assert clip.flow.shape == (*size, 2) and clip.flow.dtype == np.float32
        assert not clip.flow[-1].any()
        assert CONFIG.min_entities <= len(clip.entities) <= CONFIG.max_entities
        for entity in clip.entities:
            assert entity.track.shape == (CONFIG.frames, 2)
            assert entity.visible.shape == (CONFIG.frames,)
            assert entity.mask.shape == size and entity.mask.dtype == bool
            assert len(entity.images) == CONFIG.references


def test_words_are_distinct_and_spans_point_at_them(clips):
    for clip in clips:
        words = [entity.word for entity in clip.entities]
        assert len(set(words)) == len(words)
        for entity in clip.entities:
            assert clip.caption[slice(*entity.span)] == entity.word
            assert (entity.word, entity.kind) in WORDS


def test_masks_do_not_overlap_and_follow_the_tracks(clips):
    checked = 0
    for clip in clips:
        assert np.sum([entity.mask for entity in clip.entities], axis=0).max() == 1
        for entity in clip.entities:
            largest = entity.mask.sum((1, 2)).max()
            for frame in np.flatnonzero(entity.visible):
                rows, columns = np.nonzero(entity.mask[frame])
                if len(rows) < 0.93 * largest:  # hidden in part, or small in the distance
                    continue
                center = np.array([columns.mean(), rows.mean()]) + 0.5
                assert np.abs(center - entity.track[frame]).max() < 3
                checked += 1
    assert checked > 100


def test_invisible_means_out_of_the_frame_or_hidden():
    unseen = 0
    for index in range(60):
        for entity in render_clip(dataclasses.replace(CONFIG, references=0), index).entities:
            largest = entity.mask.sum((1, 2)).max()
            x, y = entity.track.T
            outside = (x < 0) | (x >= CONFIG.width) | (y < 0) | (y >= CONFIG.height)
            assert not np.any(entity.visible & outside)
            hidden = entity.mask.sum((1, 2)) < 0.6 * largest
            assert np.all(outside | hidden | entity.visible)
            unseen += np.count_nonzero(~entity.visible)
    assert unseen > 10


def test_flow_carries_a_mask_to_the_next_frame():
    config = dataclasses.replace(CONFIG, min_entities=1, max_entities=1)
    for index in range(8):
        clip = render_clip(config, index)
        mask = clip.entities[0].mask
        for frame in (0, 7, 15):
            rows, columns = np.nonzero(mask[frame])
            moved = np.stack([columns, rows], -1) + clip.flow[frame, rows, columns]
            x, y = np.round(moved).astype(int).T
            inside = (x >= 0) & (x < CONFIG.width) & (y >= 0) & (y < CONFIG.height)
            if inside.any():
                assert mask[frame + 1, y[inside], x[inside]].mean() > 0.93


def test_flow_at_the_center_of_an_entity_is_its_step():
    config, sizes = dataclasses.replace(CONFIG, min_entities=1, max_entities=1), []
    for index in range(8):
        clip = render_clip(config, index)
        (entity,) = clip.entities
        for frame in range(CONFIG.frames - 1):
            rows, columns = np.nonzero(entity.mask[frame])
            if len(rows) < 100:
                continue
            offset = np.stack([columns + 0.5, rows + 0.5], -1) - entity.track[frame]
            system = np.concatenate([offset, np.ones((len(rows), 1))], 1)
            affine = np.linalg.lstsq(system, clip.flow[frame, rows, columns], rcond=None)[0]
            step = entity.track[frame + 1] - entity.track[frame]
            np.testing.assert_allclose(affine[2], step, atol=1e-3)
            sizes.append(np.abs(affine[:2]).max())
    assert max(sizes) > 0.02  # it turns, so half a pixel would be seen


def test_still_background_has_no_flow(clips):
    for clip in clips:
        covered = np.any([entity.mask for entity in clip.entities], axis=0)
        assert not clip.flow[~covered].any()


def test_references_have_a_mask_and_a_background(clips):
    for clip in clips:
        for entity in clip.entities:
            for image in entity.images:
                assert image.dtype == np.uint8 and image.shape[-1] == 4
                alpha = image[..., 3]
                assert 0.08 < (alpha > 127).mean() < 0.95
                assert image[..., :3][alpha == 0].any()


def test_references_of_one_entity_differ():
    entity = sample_entity((4, 2), "man")
    rng = np.random.default_rng(0)
    first, second = (prepare(render_reference(entity, rng), "human", toy()) for _ in range(2))
    assert np.abs(first.face - second.face).mean() > 0.01


def test_explicit_entities_and_words():
    entities = [sample_entity((9, 9), "kite"), sample_entity((9, 9), "woman")]
    clip = render_clip(CONFIG, 0, entities=entities)
    assert [entity.word for entity in clip.entities] == ["kite", "woman"]
    clip = render_clip(CONFIG, 0, words=("ball",))
    assert [entity.word for entity in clip.entities] == ["ball"]
    with pytest.raises(ValueError, match="one or more entities"):
        render_clip(CONFIG, 0, entities=[])
    with pytest.raises(ValueError, match="its words are"):
        sample_entity((0,), "dragon")


def test_other_sizes_and_round_trip_of_the_config():
    config = WorldConfig(height=64, width=112, frames=9, references=1)
    clip = render_clip(from_dict(WorldConfig, to_dict(config)), 5)
    assert clip.video.shape == (9, 64, 112, 3)
    assert len(clip.entities[0].images) == 1


def test_captions_cover_every_word():
    corpus = " ".join(caption_corpus())
    assert all(f"a {word}" in corpus.lower() for word, _ in WORDS)


@pytest.mark.parametrize("word, kind", WORDS)
def test_prepare(word, kind):
    model = toy()
    image = render_reference(sample_entity((1,), word), np.random.default_rng(1))
    ready = prepare(image, kind, model)
    assert ready.has_prior
    for array, size in (
        (ready.dino, model.dino.image_size),
        (ready.face, model.face.image_size),
        (ready.object, model.object.image_size),
    ):
        assert array.shape == (size, size, 3) and array.dtype == np.float32
        assert array.min() >= 0 and array.max() <= 1
    assert ready.face.any() == (kind == "human")
    assert ready.object.any()  # of humans too: one variant shows them to the object network
    other = image.copy()
    other[other[..., 3] == 0, :3] = 77  # what is outside of the mask does not matter
    np.testing.assert_array_equal(ready.dino, prepare(other, kind, model).dino)


def test_prepare_needs_something_to_see():
    with pytest.raises(ValueError, match="transparent everywhere"):
        prepare(np.zeros((20, 20, 4), np.uint8), "object", toy())
    with pytest.raises(ValueError, match="uint8"):
        prepare(np.zeros((20, 20, 3), np.float32), "object", toy())
    assert mask_top_face(np.zeros((20, 20, 4), np.uint8)) is None


def test_entities_can_be_kept_near_the_middle():
    world = WorldConfig(seed=4, height=32, width=48, frames=5, style="bold")
    plain, near = (
        render_clip(dataclasses.replace(world, spread=spread), 2) for spread in (1.0, 0.25)
    )
    middle = np.array([24, 16])
    for entity, other in zip(plain.entities, near.entities, strict=True):
        np.testing.assert_allclose(other.track - middle, (entity.track - middle) / 4, atol=1e-4)
        assert entity.word == other.word
    assert (plain.video != near.video).any()
