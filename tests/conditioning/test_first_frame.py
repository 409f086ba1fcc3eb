"""The first frame of an image-to-video request against diffusers' own pipeline."""

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.video_processor import VideoProcessor
from flax import nnx
from PIL import Image

from convert.engine.rules import convert
from convert.families.cogvideox_vae import rules
from tests.support.parity import BLOCK_TOLERANCE, numpy_state, randomize, relative_error
from tora2_jax.conditioning.first_frame import encode_first_frame, first_frame
from tora2_jax.config import ModelConfig, TransformerConfig, VAEConfig
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.request import Request

SIDE = 16  # pixels
TEXT = (1, 3, 8)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    return tmp_path / "first.png"


@pytest.mark.parametrize(("height", "width"), [(64, 32), (16, 48), (37, 53)])
def test_an_image_of_any_size_becomes_the_first_frame(picture, height, width):
    ours = first_frame(Request("A cat", height=height, width=width, image=picture))
    theirs = VideoProcessor(vae_scale_factor=1).preprocess(Image.open(picture), height, width)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0), atol=1e-6)
    assert ours.dtype == np.float32 and ours.min() >= -1 and ours.max() <= 1


def test_transparency_of_the_first_frame_is_left_out(picture):
    plain = Image.open(picture)
    plain.putalpha(Image.new("L", plain.size, 90))
    plain.save(picture.with_name("clear.png"))
    request = Request("A cat", height=32, width=32, image=picture)
    clear = request._replace(image=picture.with_name("clear.png"))
    np.testing.assert_array_equal(first_frame(clear), first_frame(request))


def their_pipeline(config: ModelConfig) -> CogVideoXImageToVideoPipeline:
    """Diffusers' pipeline around the smallest networks that it takes."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=16,
        in_channels=2 * config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        time_embed_dim=8,
        text_embed_dim=TEXT[2],
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=TEXT[1],
        patch_size_t=config.transformer.patch_size_t,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=config.vae.channels,
        latent_channels=config.vae.latent_channels,
        layers_per_block=config.vae.layers_per_block,
        norm_num_groups=config.vae.norm_groups,
        scaling_factor=config.vae.scaling_factor,
        invert_scale_latents=config.vae.invert_scale_latents,
    )
    scheduler = CogVideoXDPMScheduler(timestep_spacing="trailing")
    pipeline = CogVideoXImageToVideoPipeline(
        None, None, randomize(vae, 0), randomize(transformer, 1), scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("frames", [5, 9])
@pytest.mark.parametrize(("invert", "patch_t"), [(False, None), (True, None), (True, 2)])
def test_image_latents_equal_what_diffusers_gives_its_transformer(
    picture, monkeypatch, invert, patch_t, frames
):
    """With the posterior's mode for its draw; 5 frames are 2 latents, 9 are 3 and are padded."""
    vae_config = VAEConfig(
        channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_groups=2,
        invert_scale_latents=invert,
    )
    config = ModelConfig(vae=vae_config, transformer=TransformerConfig(patch_size_t=patch_t))
    pipeline = their_pipeline(config)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: self.mode())
    seen = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["hidden_states"]), with_kwargs=True
    )
    pipeline(
        Image.open(picture),
        height=SIDE,
        width=SIDE,
        num_frames=frames,
        num_inference_steps=1,
        guidance_scale=1,
        prompt_embeds=torch.zeros(TEXT),
        output_type="latent",
    )
    theirs = seen[0][:, :, config.vae.latent_channels :].permute(0, 1, 3, 4, 2)

    vae = CausalVAE(config.vae, rngs=nnx.Rngs(0))
    arrays = convert(rules(config.vae), numpy_state(pipeline.vae), flat_variables(vae))
    assign_variables(vae, arrays)
    image = first_frame(Request("A cat", height=SIDE, width=SIDE, image=picture))
    latent_frames = config.latent_grid(frames, SIDE, SIDE)[0]
    ours = jax.jit(lambda image: encode_first_frame(vae, config, image, latent_frames))(image[None])
    assert relative_error(ours, theirs) < BLOCK_TOLERANCE
