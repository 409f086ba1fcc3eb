"""Paths from masks, against the truth of the toy world, and masks of what moves."""

import dataclasses

import numpy as np
import pytest

from configs.bold.vae import bold_world
from tests.data.curate.test_measures import panned, texture
from tests.support.world_truth import middle_of
from tora2_jax.config.curate import MaskConfig
from tora2_jax.data.curate.annotate.mask_rules import mask_problem
from tora2_jax.data.curate.annotate.motion_masks import homography, moving_masks
from tora2_jax.data.curate.annotate.tracks import LucasKanade, center_of
from tora2_jax.world.clips import render_clip

MARKS = (0, 12, 24)


def world(**changes):
    settings = bold_world(77, frames=25, references=0)
    return dataclasses.replace(settings, height=256, width=256, **changes)


def moving_square(way=(4, 2), frames=20, ground=None) -> tuple[np.ndarray, np.ndarray]:
    """A textured square that moves over a picture, and its masks."""
    back = np.full((160, 240, 3), 90, np.uint8) if ground is None else ground
    square = texture(40, 40)
    video, masks = np.stack([back] * frames), np.zeros((frames, 160, 240), bool)
    for index in range(frames):
        x, y = 20 + way[0] * index, 30 + way[1] * index
        video[index, y : y + 40, x : x + 40] = square[:, : max(240 - x, 0)]
        masks[index, y : y + 40, x : x + 40] = True
    return video, masks


def test_a_square_is_followed_to_a_tenth_of_a_pixel():
    video, masks = moving_square()
    expected = np.stack([center_of(mask) for mask in masks])
    for marks in ([0], [19], [0, 10, 19], [7]):
        track = LucasKanade()(video, {mark: masks[mark] for mark in marks})
        assert np.abs(track.position - expected).max() < 0.1 and track.visible.all(), marks


def test_the_path_meets_the_center_of_every_mask():
    video, masks = moving_square()
    moved = np.roll(masks[10], 3, axis=1)  # as if the segmenter had been off by three pixels
    track = LucasKanade()(video, {0: masks[0], 10: moved, 19: masks[19]})
    for mark, mask in ((0, masks[0]), (10, moved), (19, masks[19])):
        assert np.allclose(track.position[mark], center_of(mask), atol=1e-3)
    # Between them it changes over, and does not jump.
    off = track.position[:, 0] - np.array([center_of(mask)[0] for mask in masks])
    assert np.abs(np.diff(off)).max() < 0.5


def test_an_entity_that_leaves_the_picture_is_not_visible_any_more():
    video, masks = moving_square(way=(14, 0), frames=20)
    track = LucasKanade()(video, {0: masks[0]})
    assert track.visible[:13].all() and not track.visible[16:].any()


def test_where_there_is_nothing_to_hold_on_to_it_is_lost():
    video, masks = moving_square(frames=12)
    noise = np.random.default_rng(1).integers(0, 256, video.shape, np.uint8)
    track = LucasKanade()(np.concatenate([video[:6], noise[6:]]), {0: masks[0]})
    assert track.visible[:6].all() and not track.visible[6]


@pytest.mark.long
def test_entities_of_the_world_are_followed():
    errors = []
    for index in range(16):
        record = render_clip(world(), index)
        for entity in record.entities:
            area = entity.mask.sum((1, 2))
            if (area[list(MARKS)] < 200).any():
                continue
            track = LucasKanade()(record.video, {mark: entity.mask[mark] for mark in MARKS})
            missed = np.linalg.norm(track.position - middle_of(entity), axis=-1)
            errors.append(np.median(missed[entity.visible & track.visible]))
    assert len(errors) >= 15 and np.mean(np.array(errors) < 3) >= 0.9


@pytest.mark.long
def test_offline_entities_of_clips_with_one_are_found_and_followed():
    """The goal without a network: 80 % of them, IoU above 0.6, paths within 4 pixels."""
    good, index = [], 0
    while len(good) < 10:
        record = render_clip(world(), index)
        index += 1
        if len(record.entities) != 1:
            continue
        truth = record.entities[0].mask
        (found,) = moving_masks(record.video, MARKS, 1) or [{}]
        shown = [mark for mark in found if truth[mark].any()]
        if not shown:
            good.append(False)
            continue
        overlap = [
            (found[mark] & truth[mark]).sum() / (found[mark] | truth[mark]).sum() for mark in shown
        ]
        track = LucasKanade()(record.video, found)
        far = np.linalg.norm(track.position - middle_of(record.entities[0]), axis=-1)
        far = far[record.entities[0].visible & track.visible]
        good.append(bool(np.mean(overlap) > 0.6 and np.median(far) < 4))
    assert np.mean(good) >= 0.8


def test_what_moves_is_told_from_the_background():
    video, masks = moving_square(ground=texture(160, 240))
    (found,) = moving_masks(video, [0, 10, 19], 2)[:1]
    for mark, mask in found.items():
        assert (mask & masks[mark]).sum() / (mask | masks[mark]).sum() > 0.8
    assert sorted(found) == [0, 10, 19]


def test_a_still_video_has_nothing_that_moves():
    assert moving_masks(np.stack([texture(120, 160)] * 8), [0, 7], 3) == []


def test_a_pan_is_a_homography_and_a_moving_thing_is_none():
    pan = panned((5, -3), frames=2, size=(200, 300))
    assert np.allclose(homography(pan[0], pan[1])[:2, 2], [5, -3], atol=0.3)
    video, _ = moving_square()
    assert np.array_equal(homography(video[0], video[5]), np.eye(3))


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        ((slice(0, 2), slice(0, 2)), "too small: 0.04 % of the picture, below 0.4 %"),
        ((slice(0, 100), slice(0, 70)), "too large: 70 % of the picture, above 60 %"),
        ((slice(0, 100, 2), slice(0, 50)), "fragmented: 98 % lies outside of the largest of 50"),
        ((slice(10, 50), slice(10, 50)), None),
    ],
)
def test_masks_that_are_not_kept(cut, told):
    mask = np.zeros((100, 100), bool)
    mask[cut] = True
    found = mask_problem(mask, MaskConfig())
    assert found is None if told is None else told in found
