"""How references are changed in training, and that they are not where it is off."""

import dataclasses

import numpy as np
import pytest

from tests.train.test_chain import TOY
from tora2_jax import conditioning
from tora2_jax.config import to_dict, toy
from tora2_jax.config.train import ReferenceGuardConfig, TrainConfig, problems
from tora2_jax.config.world import WorldConfig
from tora2_jax.data import pool, world_examples
from tora2_jax.data.reference_augmentation import (
    Change,
    apply_change,
    augment,
    draw_change,
    generator,
    guard_record,
)
from tora2_jax.references.crops import prepare
from tora2_jax.text import load_tokenizer
from tora2_jax.world.clips import render_clip

GUARDS = ReferenceGuardConfig()
NONE = ReferenceGuardConfig(
    smallest=10_000, blur=0, color=0, brightness=0, flip=0, shear=0, rotate=0, crop=1
)
WORLD = WorldConfig(seed=3, height=64, width=64, frames=9, references=2)
UNCHANGED = Change(1.0, 1, False, np.eye(2), np.ones(2), np.zeros(2), np.ones(3))


def entity(height: int = 120, width: int = 160) -> np.ndarray:
    """A disc, its left half red, its right half green, before a blue ground."""
    rows, columns = np.mgrid[:height, :width]
    image = np.zeros((height, width, 4), np.uint8)
    image[..., 2] = 255
    disc = (rows - 60) ** 2 + (columns - 80) ** 2 < 45**2
    image[disc & (columns < 80)] = (200, 0, 0, 255)
    image[disc & (columns >= 80)] = (0, 200, 0, 255)
    return image


def changes(count: int = 600, height: int = 300, width: int = 400, **settings) -> list[Change]:
    guards = dataclasses.replace(NONE, **settings)
    rng = np.random.default_rng(0)
    return [draw_change(guards, height, width, rng) for _ in range(count)]


def assert_fills(values, low: float, high: float):
    """Values stay inside a range and come near both its ends."""
    values, slack = np.asarray(values), 0.05 * (high - low)
    assert low <= values.min() < low + slack and high - slack < values.max() <= high


def test_draws_fill_the_ranges_of_the_settings():
    assert_fills([change.scale for change in changes(smallest=112)], 112 / 400, 1)
    assert {change.scale for change in changes(smallest=112, height=80, width=112)} == {1.0}
    blurred = changes(blur=0.02, smallest=112)
    assert {change.kernel for change in blurred} == {1, 3, 5, 7}
    assert all(change.kernel <= max(1, 400 * change.scale / 50) for change in blurred)
    turned = [np.rad2deg(np.arctan2(*change.linear[::-1, 0])) for change in changes(rotate=20)]
    assert_fills(turned, -20, 20)
    sheared = np.array([change.linear for change in changes(shear=0.05)])
    assert_fills(sheared[:, 0, 1], -0.05, 0.05)
    assert_fills(sheared[:, 1, 0], -0.05, 0.05)
    kept = np.array([change.kept for change in changes(crop=0.67)]) ** 2
    assert_fills(kept, 0.67, 1)
    gains = np.array([change.gains for change in changes(color=0.05)])
    assert_fills(gains, 0.95, 1.05)
    assert np.abs(gains[:, 0] - gains[:, 1]).max() > 0.05
    light = np.array([change.gains for change in changes(brightness=0.1)])
    assert_fills(light, 0.9, 1.1)
    assert np.ptp(light, axis=1).max() == 0
    assert 0.4 < np.mean([change.flip for change in changes(flip=0.5)]) < 0.6


def test_each_change_does_what_it_says():
    image = entity()

    def changed(**change) -> np.ndarray:
        return apply_change(image, "object", UNCHANGED._replace(**change))

    plain, disc = changed(), image[..., 3] > 0
    box = image[16:105, 36:125]
    assert plain.shape == (89, 89, 4)  # cropped to the mask's box
    np.testing.assert_array_equal(plain[..., 3], box[..., 3])
    np.testing.assert_array_equal(plain[plain[..., 3] > 0], image[disc])
    np.testing.assert_array_equal(changed(flip=True), plain[:, ::-1])
    np.testing.assert_allclose(changed(scale=0.5).shape[:2], 45, atol=1)
    brighter = changed(gains=np.array([1.5, 0.5, 1]))
    assert brighter[44, 10].tolist() == [255, 0, 0, 255]  # saturated
    assert brighter[44, 80].tolist() == [0, 100, 0, 255]
    part = changed(kept=np.array([0.5, 0.25]), place=np.array([0.0, 0.999]))
    np.testing.assert_array_equal(part, plain[:44, -22:])
    quarter = changed(linear=np.array([[0.0, -1.0], [1.0, 0.0]]))  # x right, y down: clockwise
    assert quarter[10, 44, :2].tolist() == [200, 0] and quarter[80, 44, :2].tolist() == [0, 200]
    soft = changed(kernel=5)[..., 3]
    assert ((soft > 0) & (soft < 255)).any() and soft.shape[0] >= 89


def test_colors_of_the_ground_never_enter_the_entity():
    guards = dataclasses.replace(GUARDS, color=0, brightness=0, blur=0.1)
    rng = np.random.default_rng(1)
    for _ in range(30):
        changed = augment(entity(), "object", guards, rng)
        seen = changed[..., 3] > 0
        assert not changed[seen][:, 2].any()  # nothing blue
        colors = changed[seen][:, :2].astype(int)
        assert np.abs(colors.sum(1) - 200).max() <= 1  # red, green, or between
        assert (changed[~seen][:, :3] == 255).all()
        solid = changed[..., 3] > 127
        assert solid.mean() > 0.4 and changed.dtype == np.uint8


def test_an_opaque_photo_stays_opaque_where_it_was_turned_from():
    photo = np.full((100, 100, 4), 255, np.uint8)
    photo[..., 0] = 90
    blurred = apply_change(photo, "object", UNCHANGED._replace(kernel=9))
    np.testing.assert_array_equal(blurred, photo)


def test_a_turned_picture_keeps_every_pixel():
    photo = np.random.default_rng(0).integers(0, 256, (5, 8, 4), np.uint8)
    photo[..., 3] = 255
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])  # clockwise
    turned = [
        apply_change(photo, "object", UNCHANGED._replace(linear=x)) for x in (quarter, -quarter)
    ]
    np.testing.assert_array_equal(turned[0], np.rot90(photo, -1))
    np.testing.assert_array_equal(turned[1], np.rot90(photo))


def test_the_head_of_a_human_is_not_cropped():
    person = np.zeros((200, 80, 4), np.uint8)
    person[20:190, 10:70] = (50, 60, 70, 255)
    person[20:30, 10:70, 0] = 250  # the head
    change = UNCHANGED._replace(kept=np.array([0.8, 0.9]), place=np.array([0.9, 0.9]))
    cut = {kind: apply_change(person, kind, change) for kind in ("human", "object")}
    assert (cut["human"][:10, :, 0] == 250).all() and cut["human"].shape == (136, 54, 4)
    assert (cut["object"][..., 0] == 50).all() and cut["object"].shape == (136, 54, 4)


@pytest.mark.parametrize("kind", ["human", "object"])
def test_something_of_the_entity_always_remains(kind):
    corners = np.zeros((300, 300, 4), np.uint8)
    corners[:4, :4] = corners[-4:, -4:] = (90, 0, 0, 255)
    line = np.zeros((300, 300, 4), np.uint8)
    line[150] = (90, 0, 0, 255)  # vanishes when it is shrunk
    rng = np.random.default_rng(0)
    for image in (corners, line):
        for _ in range(15):
            changed = augment(image, kind, GUARDS, rng)
            assert prepare(changed, "object", toy()).dino.min() < 1
            assert (changed[..., 3] > 127).any()


def test_chance_depends_on_seed_clip_and_draw():
    def drawn(*key) -> np.ndarray:
        return augment(entity(), "object", GUARDS, generator(*key))

    first = drawn(0, "clip", 0, 0)
    np.testing.assert_array_equal(first, drawn(0, "clip", 0, 0))
    for key in ((1, "clip", 0, 0), (0, "clap", 0, 0), (0, "clip", 1, 0), (0, "clip", 0, 1)):
        other = drawn(*key)
        assert other.shape != first.shape or (other != first).any()


def test_references_of_a_record_are_drawn_with_replacement():
    record = render_clip(dataclasses.replace(WORLD, references=3, min_entities=2), 0)
    plain = dataclasses.replace(NONE, max_images=3)
    counts, repeated = set(), False
    for draw in range(30):
        guarded = guard_record(record, plain, 0, draw, limit=4)
        again = guard_record(record, plain, 0, draw, limit=4)
        for ours, entity, same in zip(
            guarded.entities, record.entities, again.entities, strict=True
        ):
            counts.add(len(ours.images))
            known = {prepare(image, "object", toy()).dino.tobytes() for image in entity.images}
            found = [prepare(image, "object", toy()).dino.tobytes() for image in ours.images]
            assert set(found) <= known
            repeated |= len(set(found)) < len(found)
            assert all((a == b).all() for a, b in zip(ours.images, same.images, strict=True))
    assert counts == {1, 2, 3} and repeated
    assert {
        len(entity.images)
        for draw in range(9)
        for entity in guard_record(record, GUARDS, 0, draw, limit=2).entities
    } == {1, 2}


def test_the_toy_worlds_pool_is_as_before_unless_it_is_switched_on():
    model, tokenizer = toy(), load_tokenizer(TOY / "tokenizer")
    off = world_examples.WorldExamples(model, tokenizer, WORLD, 4)
    on = world_examples.WorldExamples(model, tokenizer, WORLD, 4, guards=GUARDS, seed=1)
    world = {name: value for name, value in to_dict(WORLD).items() if name != "spread"}
    assert {"world": world, "size": 4}.items() <= off.identity.items()
    assert not {"guards", "seed"} & off.identity.keys()
    keys = {
        pool.fingerprint(model, examples, [])
        for examples in (
            off,
            on,
            world_examples.WorldExamples(model, tokenizer, WORLD, 4, guards=GUARDS, seed=2),
            world_examples.WorldExamples(model, tokenizer, WORLD, 4, guards=NONE, seed=1),
        )
    }
    assert len(keys) == 4
    expected = conditioning.record_inputs(model, tokenizer, render_clip(WORLD, 2))
    for mine, theirs in zip(off[2][0], expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    changed, again = on[2][0], on[2][0]
    assert (changed.dino_images != expected.dino_images).any()
    np.testing.assert_array_equal(changed.dino_images, again.dino_images)
    np.testing.assert_array_equal(changed.flow_video, expected.flow_video)


def test_settings_out_of_their_ranges_are_named():
    wrong = ReferenceGuardConfig(
        max_images=0, frame_gap=-1, smallest=0, blur=1, color=-1, brightness=2, flip=2, shear=1,
        rotate=200, crop=0,
    )  # fmt: skip
    faults = problems(TrainConfig(reference_guards=wrong))
    for name in to_dict(wrong):
        assert any(f"config.reference_guards.{name} must" in fault for fault in faults), name
    assert not problems(TrainConfig(reference_guards=GUARDS))
