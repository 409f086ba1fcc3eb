"""The chain of the bold world: its captions, and that each stage fits the ones before it."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from scripts.toy_checkpoint import CHAINS
from tora2_jax import text
from tora2_jax.config import to_dict
from tora2_jax.config.world import WorldConfig
from tora2_jax.evaluation.requests import world_requests
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.train.state import abstract_step, find_stage, mesh_of
from tora2_jax.weights import checkpoint
from tora2_jax.world.captions import (
    COLORS,
    NEUTRAL,
    color_name,
    place_name,
    rich_corpus,
    whereabouts,
)
from tora2_jax.world.clips import render_clip
from tora2_jax.world.entities import WORDS, sample_entity
from tora2_jax.world.model import toy_bold

ROOT = Path(__file__).parents[2]
CHAIN = CHAINS["bold"]
DIFFUSION = (
    *("base_stills", "base_middle", "base_one", "base_clips", "base_last"),
    *("joint_stills", "joint"),
)
CONDITIONED = ("joint_stills", "joint")
TELLING = set(" ".join(rich_corpus()).lower().split()) - set(
    ["a", "an", "and", "in", "with", "ball", "the"]
)


def _config(name):
    return importlib.import_module(f"configs.bold.{name}").get_config()


def _tells(caption):
    """Words of a caption that say what is to be seen; `in the snow`, `at night` are of all."""
    for place in ("in the snow", "at night", "in a meadow"):
        caption = caption.replace(place, "")
    return TELLING & set(caption.lower().replace(".", "").replace(",", "").split())


@pytest.mark.parametrize("name", CONDITIONED)
def test_conditioned_stages_see_the_words_alone(name):
    world = _config(name).world
    assert world.rich_captions == 0
    captions = [render_clip(world, index).caption for index in range(40)]
    assert not any(map(_tells, captions))


def test_the_bench_asks_with_the_words_alone():
    records = world_requests(toy_bold(), 20, seed=0)
    assert not any(_tells(record.caption) for record in records)
    looks = [np.abs(e.images[0][..., :3]).std() for r in records for e in r.entities]
    assert len(set(looks)) > 30


def test_most_captions_of_the_base_tell_what_is_seen_and_all_fit():
    config = _config("base_stills")
    tokenizer = text.load_tokenizer(ROOT / config.tokenizer)
    config.world.frames = 3
    records = [render_clip(config.world, index) for index in range(300)]
    told = [bool(_tells(record.caption)) for record in records]
    assert 0.5 < np.mean(told) < 0.7
    for record in records:
        pieces = [piece.spelled for piece in tokenizer.pieces(record.caption)]
        assert len(pieces) <= config.model.transformer.max_text_length, record.caption
        assert "▁" not in pieces and "<unk>" not in pieces, record.caption
        for entity in record.entities:
            assert record.caption[slice(*entity.span)] == entity.word
        ordered = [entity.span[0] for entity in record.entities]
        assert ordered == sorted(set(ordered))


def test_a_rich_caption_names_the_color_that_is_drawn():
    world = WorldConfig(seed=3, style="bold", rich_captions=1.0, min_entities=1, max_entities=1)
    named = 0
    for index in range(60):
        record = render_clip(world, index)
        entity = sample_entity((3, index), record.entities[0].word, "bold")
        main = entity.colors[2 if entity.kind == "human" else 0]
        colors = [word for word in record.caption.lower().split() if word in (*COLORS, *NEUTRAL)]
        if entity.kind == "object" and colors:
            assert colors[0] == color_name(main)
            named += 1
            inside = record.video[0][record.entities[0].mask[0]].astype(float)
            gaps = np.abs(inside - main).max(-1) if len(inside) else np.zeros(1)
            assert gaps.min() < 12  # the color is in the picture
    assert named > 15


@pytest.mark.parametrize(
    "color, name",
    [
        ((255, 0, 0), "red"),
        ((255, 140, 0), "orange"),
        ((250, 240, 20), "yellow"),
        ((20, 160, 40), "green"),
        ((20, 60, 230), "blue"),
        ((250, 80, 200), "pink"),
        ((250, 250, 250), "white"),
        ((128, 128, 128), "gray"),
        ((10, 10, 10), "black"),
    ],
)
def test_names_of_colors(color, name):
    assert color_name(np.array(color, float)) == name


def test_places_and_directions():
    assert place_name(np.array([0.1, 0.9])) == "at the bottom left"
    assert place_name(np.array([0.5, 0.5])) == "in the middle"
    assert whereabouts(np.array([[0.2, 0.5], [0.6, 0.5]])) == "moving right"
    assert whereabouts(np.array([[0.5, 0.9], [0.5, 0.4]])) == "moving up"
    assert whereabouts(np.array([[0.8, 0.2], [0.82, 0.2]])) == "at the top right"


def test_words_may_be_repeated_with_identities_of_their_own():
    world = WorldConfig(seed=5, style="bold", repeated_words=1.0, min_entities=2, max_entities=2)
    record = render_clip(world, 0)
    first, second = record.entities
    assert first.word == second.word and first.span < second.span
    assert not np.array_equal(first.images[0], second.images[0])
    assert first.word in dict(WORDS)


@pytest.mark.parametrize("name", CHAIN.stages)
def test_a_stage_starts_from_what_earlier_ones_ship(name):
    names = list(CHAIN.stages)
    made = [CHAIN.shipped[earlier] for earlier in names[: names.index(name)]]
    for component, place in to_dict(_config(name).weights).items():
        if place is not None:
            folder = str(Path(place).parent)
            assert place in made or folder in made, f"{component}: {place}"


@pytest.mark.long
@pytest.mark.parametrize("name", DIFFUSION)
def test_the_step_of_a_diffusion_stage_can_be_traced(name):
    config = _config(name)
    config.mesh.data, config.batch_size = 1, 2
    stage = find_stage(config)
    step = abstract_step(config, stage, mesh_of(config, stage))
    assert step.batch["latents"].shape[1] == (config.model.frames + 3) // 4
    assert "dot_general" in step.lower().as_text()


def test_each_chunk_of_the_shipped_vae_shows_the_same_content_equally_well():
    path = ROOT / "checkpoints" / "bold" / "vae.safetensors"
    model = toy_bold()
    vae = CausalVAE(model.vae, rngs=nnx.Rngs(0))
    checkpoint.merge(vae, checkpoint.load_component(path)[0])
    frame = render_clip(WorldConfig(seed=77, height=64, width=64, style="bold"), 2).video[0]
    still = np.repeat(frame[None, None], 17, axis=1).astype(np.float32) / 127.5 - 1
    shown = nnx.jit(lambda vae, video: vae.decode(vae.encode(video).mean))(vae, still)
    error = np.abs(np.asarray(shown) - still)
    first, second = error[:, 1:9].mean(), error[:, 9:].mean()
    assert 0.8 < second / first < 1.25 and first < 0.08
