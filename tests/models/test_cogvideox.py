"""Converted CogVideoX against diffusers' pipelines, from request files to frames."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import T5TokenizerFast

from tests.support import cogvideox_twins as twins
from tests.support.parity import PIPELINE_TOLERANCE, relative_error
from tora2_jax.sampling import command


def _images(folder):
    generator = np.random.default_rng(4)
    shape = (2, twins.HEIGHT, twins.WIDTH, 3)
    pictures = [Image.fromarray(x) for x in generator.integers(0, 256, shape, np.uint8)]
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    return pictures


def _latents(twin):
    shape = (2, 5 + (twin.transformer.config.patch_size_t == 2), 4, 6, 4)
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


def _diffusers(twin, tokenizer, latents, images, **options):
    twin.tokenizer = tokenizer
    twin.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return twin(
            prompt=list(twins.PROMPTS),
            negative_prompt=list(NEGATIVE),
            height=twins.HEIGHT,
            width=twins.WIDTH,
            num_frames=twins.FRAMES,
            num_inference_steps=4,
            guidance_scale=6.0,
            use_dynamic_cfg=True,
            latents=torch.from_numpy(latents),
            max_sequence_length=twins.TEXT_LENGTH,
            **({"image": images} if images else {}),
            **options,
        ).frames


def _requests(folder, images):
    paths = [folder / "first.json", folder / "second.json"]
    for index, path in enumerate(paths):
        fields = {"prompt": twins.PROMPTS[index], "negative_prompt": NEGATIVE[index]}
        fields |= {"frames": twins.FRAMES, "height": twins.HEIGHT, "width": twins.WIDTH}
        fields |= {"image": f"{index}.png"} if images else {}
        path.write_text(json.dumps(fields))
    return paths


NEGATIVE = ("a red dog", "")
# The others take as long and differ in fewer places.
IN_SHORT = ("cogvideox_2b", "cogvideox_1_5_5b_i2v")


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.long)
        for name in twins.PUBLISHED
    ],
)
def test_prompt_to_frames_equals_diffusers(name, tmp_path, monkeypatch):
    """From two request files to frames, four DDIM steps from given noise, as a user runs it."""
    from diffusers import CogVideoXDDIMScheduler
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # We take the image's most likely latent, so that a request gives the same video twice.
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )
    _, converted = twins.convert(name, tmp_path)
    twin = twins.pipeline(name)
    scheduler = CogVideoXDDIMScheduler.from_config(twin.scheduler.config)
    monkeypatch.setattr(twin, "scheduler", scheduler)
    images = _images(tmp_path) if name.endswith("i2v") else None
    latents = _latents(twin)
    np.savez(tmp_path / "noise.npz", latents=latents)
    files = {"save_latents": tmp_path / "latents.npz", "save_frames": tmp_path / "frames.npy"}
    command.run(
        command.Options(
            checkpoint=converted,
            request=_requests(tmp_path, images),
            output=tmp_path / "out.mp4",
            steps=4,
            scheduler="ddim",
            init_latents=tmp_path / "noise.npz",
            **files,
        )
    )
    tokenizer = T5TokenizerFast.from_pretrained(converted / "tokenizer")
    expected = _diffusers(twin, tokenizer, latents, images, output_type="latent")
    saved = np.load(files["save_latents"])["latents"]
    assert relative_error(saved, expected.numpy()) < PIPELINE_TOLERANCE
    decoded = twin.decode_latents(expected[:, -5:])  # without 1.5's padding
    video = twin.video_processor.postprocess_video(decoded.detach(), "np")
    assert relative_error(np.load(files["save_frames"]), video) < PIPELINE_TOLERANCE
