"""CogVideoX's transformer equals diffusers' in all five configurations; its call sites."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from flax import nnx

from convert.engine.rules import convert, export
from convert.families.cogvideox_transformer import rules
from tests.support.parity import (
    BLOCK_TOLERANCE,
    insensitive,
    numpy_state,
    randomize,
    relative_error,
)
from tora2_jax.config import PRESETS, MotionConfig, PersonalizationConfig, TransformerConfig
from tora2_jax.models.blocks import Shared
from tora2_jax.models.dit import CogVideoXTransformer
from tora2_jax.models.layers import basic
from tora2_jax.models.layers.stream import Layout

PUBLISHED = {
    "cogvideox_2b": 1_693_783_872,
    "cogvideox_5b": 5_570_283_072,
    "cogvideox_5b_i2v": 5_570_479_680,
    "cogvideox_1_5_5b": 5_570_676_352,
    "cogvideox_1_5_5b_i2v": 5_571_594_880,
}
TEXT = 5
ROWS, COLUMNS = 4, 6  # latents
MOTION = MotionConfig(width=8, norm_groups=4)
PERSONALIZATION = PersonalizationConfig(width=8, cross_heads=2, cross_head_dim=8)


def _tiny(name: str, **changes) -> TransformerConfig:
    config = PRESETS[name]().transformer
    sample = (10, 10) if config.patch_size_t else (ROWS, COLUMNS)
    return dataclasses.replace(
        config,
        num_layers=2,
        num_heads=2,
        head_dim=16,
        in_channels=config.in_channels // 4,
        out_channels=4,
        time_embed_dim=12,
        ofs_embed_dim=config.ofs_embed_dim and 12,
        text_embed_dim=14,
        max_text_length=TEXT,
        sample_frames=9,
        sample_height=sample[0],
        sample_width=sample[1],
        **changes,
    )


def _twin(config: TransformerConfig) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        time_embed_dim=config.time_embed_dim,
        ofs_embed_dim=config.ofs_embed_dim,
        text_embed_dim=config.text_embed_dim,
        num_layers=config.num_layers,
        sample_width=config.sample_width,
        sample_height=config.sample_height,
        sample_frames=config.sample_frames,
        patch_size=config.patch_size,
        patch_size_t=config.patch_size_t,
        temporal_compression_ratio=config.temporal_compression,
        max_text_seq_length=config.max_text_length,
        spatial_interpolation_scale=config.spatial_interpolation_scale,
        temporal_interpolation_scale=config.temporal_interpolation_scale,
        use_rotary_positional_embeddings=config.positions == "rotary",
        use_learned_positional_embeddings=config.learned_positions,
        patch_bias=config.patch_size_t is None,
    )


def _random_twin(config):
    twin = _twin(config)
    fixed = None if config.positions == "rotary" else twin.patch_embed.pos_embedding.clone()
    randomize(twin, 0)
    if fixed is not None:
        twin.patch_embed.pos_embedding.copy_(fixed)
    return twin


def _inputs(config, frames=None, rows=ROWS, columns=COLUMNS):
    frames = frames or (4 if config.patch_size_t else 3)
    generator = np.random.default_rng(0)
    shape = (2, frames, rows, columns, config.in_channels)
    latents = generator.normal(size=shape).astype(np.float32)
    text = generator.normal(size=(2, TEXT, config.text_embed_dim)).astype(np.float32)
    return latents, np.array([999.0, 19.0], np.float32), text


def _rotary(config, twin, latents):
    """What diffusers' own pipeline passes, from its own code."""
    if config.positions != "rotary":
        return None
    pipeline = type("Pipeline", (), {"vae_scale_factor_spatial": 8, "transformer": twin})()
    _, frames, rows, columns, _ = latents.shape
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, rows * 8, columns * 8, frames, torch.device("cpu")
    )


def _reference(config, twin, latents, timestep, text):
    with torch.no_grad():
        output = twin(
            torch.from_numpy(latents).permute(0, 1, 4, 2, 3),
            torch.from_numpy(text),
            torch.from_numpy(timestep),
            ofs=torch.full((1,), 2.0) if config.ofs_embed_dim else None,
            image_rotary_emb=_rotary(config, twin, latents),
        ).sample
    return output.permute(0, 1, 3, 4, 2).numpy()


def _is_new(name):
    return "fuser" in name or "cross_attention" in name


def _make(config, twin, new=None, **parts):
    """Our model with the twin's weights; what CogVideoX lacks is `new`, or random throughout."""
    model = nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0), **parts))
    target = basic.flat_variables(model)
    generator = np.random.default_rng(3)
    if new is None:
        new = {
            name: 0.3 * generator.normal(size=x.shape)
            for name, x in target.items()
            if _is_new(name)
        }
    base = {name: x for name, x in target.items() if not _is_new(name)}
    basic.assign_variables(model, {**new, **convert(rules(config), numpy_state(twin), base)})
    return model


@nnx.jit
def _run(model, latents, timestep, text, *, tokens=None, key_mask=None, **conditions):
    """From T5 states and personalization tokens to the output, as a request goes."""
    if tokens is not None:
        conditions |= {"keys_values": model.keys_values(tokens, key_mask), "key_mask": key_mask}
    return model(latents, timestep, model.project_text(text), **conditions)


@pytest.mark.parametrize("name", PUBLISHED)
def test_output_equals_diffusers(name):
    config = _tiny(name)
    twin = _random_twin(config)
    inputs = _inputs(config)
    actual = _run(_make(config, twin), *inputs)
    assert relative_error(actual, _reference(config, twin, *inputs)) < BLOCK_TOLERANCE


@pytest.mark.parametrize(
    ("name", "frames", "rows", "columns"),
    [
        ("cogvideox_2b", 2, 8, 4),  # the table is made anew
        ("cogvideox_5b", 2, 8, 6),  # cropped at the sides
        ("cogvideox_5b", 1, 4, 14),  # cropped above and below
        ("cogvideox_5b_i2v", 2, ROWS, COLUMNS),  # diffusers drops the stored table
    ],
)
def test_other_sizes_equal_diffusers(name, frames, rows, columns):
    config = _tiny(name)
    twin = _random_twin(config)
    inputs = _inputs(config, frames, rows, columns)
    actual = _run(_make(config, twin), *inputs)
    assert relative_error(actual, _reference(config, twin, *inputs)) < BLOCK_TOLERANCE


def test_every_block_equals_diffusers():
    config = _tiny("cogvideox_5b")
    twin = _random_twin(config)
    model = _make(config, twin)
    generator = np.random.default_rng(1)
    text, video, embedding = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, TEXT, 32), (2, 18, 32), (2, 12))
    )
    tables = basic.rotary_tables((np.arange(3), np.arange(2), np.arange(3)), config.head_dim)
    layout = Layout.of(TEXT, (3, 2, 3))
    cosines, sines = map(layout.place_video, tables)
    cosines = cosines.at[:TEXT].set(1)
    shared = Shared(layout, embedding, (cosines, sines), None, None)
    stream = np.concatenate([text, video], axis=1)
    rotary = _rotary(config, twin, np.zeros((1, 3, ROWS, COLUMNS, 1)))
    for index, block in enumerate(twin.transformer_blocks):
        ours = basic.map_arrays(lambda x, i=index: x[i], model.blocks)
        actual, _ = nnx.jit(lambda block, stream: block(stream, shared))(ours, stream)
        with torch.no_grad():
            video_out, text_out = block(*map(torch.from_numpy, (video, text, embedding)), rotary)
        assert relative_error(actual[:, :TEXT], text_out) < BLOCK_TOLERANCE
        assert relative_error(actual[:, TEXT:], video_out) < BLOCK_TOLERANCE


@pytest.mark.parametrize("name", ["cogvideox_5b_i2v", "cogvideox_1_5_5b_i2v"])
def test_the_check_notices_every_tensor(name):
    config = _tiny(name)
    twin = _random_twin(config)
    inputs = _inputs(config)
    model = _make(config, twin)
    arrays = {path: np.asarray(x) for path, x in basic.flat_variables(model).items()}

    def forward(arrays):
        basic.assign_variables(model, arrays)
        return _run(model, *inputs)

    expected = _reference(config, twin, *inputs)
    assert insensitive(forward, arrays, expected) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_has_the_published_tensors(name):
    config = PRESETS[name]().transformer
    model = nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)))
    buffers = basic.flat_variables(model)
    parameters = sum(x.get_value().size for _, x in nnx.to_flat_state(nnx.state(model, nnx.Param)))
    assert parameters == PUBLISHED[name]
    positions = buffers.get("positions")
    assert (positions.size if positions is not None else 0) == (
        54_607_872 if config.learned_positions else 0
    )
    with torch.device("meta"):
        twin = _twin(config)
    # Zero-stride views have the shape and none of the size; COPY and transpositions keep that.
    tensors = {
        key: np.broadcast_to(np.zeros((), np.float16), tuple(x.shape))
        for key, x in twin.state_dict().items()
    }
    two = {key: x for key, x in tensors.items() if not _layer_above(key, 1)}
    small = dataclasses.replace(config, num_layers=2)
    small_model = nnx.eval_shape(lambda: CogVideoXTransformer(small, rngs=nnx.Rngs(0)))
    assert len(tensors) - len(two) == 24 * (config.num_layers - 2)
    convert(rules(small), two, basic.flat_variables(small_model))


def _layer_above(name: str, last: int) -> bool:
    parts = name.split(".")
    return parts[0] == "transformer_blocks" and int(parts[1]) > last


@pytest.mark.parametrize("name", ["cogvideox_5b_i2v", "cogvideox_1_5_5b"])
def test_weights_go_back_to_diffusers(name):
    config = _tiny(name)
    twin = _random_twin(config)
    state = numpy_state(twin)
    arrays = basic.flat_variables(_make(config, twin))
    back = export(rules(config), {path: np.asarray(x) for path, x in arrays.items()})
    assert set(back) == set(state)
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key])


def test_everything_that_does_not_fit_is_refused_at_once():
    config = _tiny("cogvideox_1_5_5b")
    model = nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)))
    latents, timestep, text = map(jnp.asarray, _inputs(config, frames=3))
    expected = r"3 latent frames .* multiple of 2.*width 14, not 32: project.*without fusers"
    with pytest.raises(ValueError, match=expected):
        model(latents, timestep, text, motion_maps=jnp.zeros((2, 2, 2, 2, 3, 8)))


def test_learned_positions_refuse_other_sizes():
    config = _tiny("cogvideox_5b_i2v")
    model = nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="stored positions are for 4 x 6"):
        model(*map(jnp.asarray, _inputs(config, rows=6)))


def _conditions(layer_count):
    generator = np.random.default_rng(5)
    maps = generator.normal(size=(layer_count, 2, 3, 2, 3, MOTION.width))
    return {
        "motion_maps": jnp.asarray(maps, jnp.float32),
        "has_motion": jnp.array([True, True]),
        "tokens": jnp.asarray(generator.normal(size=(2, 4, 8)), jnp.float32),
        "key_mask": jnp.ones((2, 4), bool),
    }


def test_new_paths_change_nothing_at_the_start_and_nothing_where_absent():
    config = _tiny("cogvideox_5b")
    twin = _random_twin(config)
    inputs = _inputs(config)
    plain = _run(_make(config, twin), *inputs)
    parts = {"motion": MOTION, "personalization": PERSONALIZATION}
    fresh = nnx.jit(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0), **parts))()
    new = {name: x for name, x in basic.flat_variables(fresh).items() if _is_new(name)}
    model = _make(config, twin, new, **parts)
    conditions = _conditions(config.num_layers)
    np.testing.assert_allclose(_run(model, *inputs, **conditions), plain, atol=1e-6)
    model = _make(config, twin, **parts)
    conditions["has_motion"] = jnp.array([False, True])
    conditions["key_mask"] = jnp.array([[False] * 4, [True] * 4])
    output = _run(model, *inputs, **conditions)
    np.testing.assert_allclose(output[0], plain[0], atol=1e-6)
    assert np.abs(output[1] - plain[1]).max() > 1e-2


def test_a_step_reads_nothing_of_what_is_done_once_per_request():
    """Text projection, keys and values may be spoiled after binding: no step looks at them."""
    config = _tiny("cogvideox_5b")
    model = _make(config, _random_twin(config), personalization=PERSONALIZATION)
    latents, timestep, text = map(jnp.asarray, _inputs(config))
    conditions = _conditions(config.num_layers)
    mask = conditions["key_mask"]
    known = model.keys_values(conditions["tokens"], mask)
    text = model.project_text(text)

    @nnx.jit
    def step(model):
        return model(latents, timestep, text, keys_values=known, key_mask=mask)

    before = step(model)
    once = re.compile(r"text_projection\.|cross_attention\.(key_token_norm|key|value|key_norm)\.")
    arrays = basic.flat_variables(model)
    spoiled = {path: x * jnp.nan for path, x in arrays.items() if once.match(path)}
    assert len(spoiled) == 8
    basic.update_variables(model, spoiled)
    np.testing.assert_array_equal(step(model), before)


@pytest.mark.parametrize(
    ("order", "every"), [("motion_first", 1), ("personalization_first", 2), ("motion_first", 4)]
)
def test_groups_of_blocks_equal_a_loop(order, every):
    config = _tiny("cogvideox_5b")
    config.num_layers, config.rematerialize = 3, "full" if every == 2 else "none"
    personalization = dataclasses.replace(PERSONALIZATION, order=order, every_k=every)
    model = _make(config, _random_twin(config), motion=MOTION, personalization=personalization)
    inputs, conditions = [*map(jnp.asarray, _inputs(config))], _conditions(3)
    assert len(model.cross_attention.query.kernel[...]) == -(-3 // every)
    maps, tokens, mask = (conditions[name] for name in ("motion_maps", "tokens", "key_mask"))

    @nnx.jit
    def both_ways(model):
        latents, timestep, text = inputs
        text = model.project_text(text)
        layout = Layout.of(text.shape[1], (3, 2, 3))
        embedding = model._embed_time(timestep)
        known = model.keys_values(tokens, mask)
        shared = model._share(layout, embedding, maps, None, known, None)
        stream = model._embed(latents, text, layout)
        scanned, seen = model._run_blocks(
            stream, shared, maps, known, lambda cross, video, *_: video
        )
        observed = []
        for index in range(3):
            block = basic.map_arrays(lambda x, i=index: x[i], model.blocks)
            personalize = None
            if index % every == 0:
                cross = basic.map_arrays(lambda x, i=index // every: x[i], model.cross_attention)
                known = cross.keys_values(tokens, mask)

                def personalize(stream, cross=cross, known=known):
                    observed.append(layout.take_video(stream))
                    return cross(stream, known, mask), ()

            stream, _ = block(stream, shared, maps[index], personalize)
        return (scanned, stream), (seen, jnp.stack(observed))

    for scanned, looped in both_ways(model):
        assert relative_error(scanned, looped) < BLOCK_TOLERANCE


def test_half_precision_is_close_and_returns_float32():
    config = _tiny("cogvideox_5b")
    twin = _random_twin(config)
    inputs = _inputs(config)
    model = _make(config, twin, dtype=jnp.bfloat16)
    output = _run(model, *inputs)
    assert output.dtype == jnp.float32
    assert relative_error(output, _reference(config, twin, *inputs)) < 0.1
