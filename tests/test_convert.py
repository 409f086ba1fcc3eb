"""`python -m convert`: CogVideoX folders in and out, and the videos that converted weights make."""

import numpy as np
import pytest
import torch
from PIL import Image

from convert.__main__ import main
from tests import cogvideox_twins as twins
from tests.parity import PIPELINE_TOLERANCE, relative_error
from tora2_jax import conditioning, pipeline, request


def _convert(name, folder, **options):
    source, converted = twins.save(name, folder / "source", **options), folder / "converted"
    assert main(["cogvideox", "--src", str(source), "--dst", str(converted)]) == 0
    return source, converted


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


def _diffusers(twin, tokenizer, latents, images):
    twin.tokenizer = tokenizer
    twin.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return twin(
            prompt=list(twins.PROMPTS),
            height=twins.HEIGHT,
            width=twins.WIDTH,
            num_frames=twins.FRAMES,
            num_inference_steps=4,
            guidance_scale=6.0,
            use_dynamic_cfg=True,
            latents=torch.from_numpy(latents),
            max_sequence_length=twins.TEXT_LENGTH,
            output_type="np",
            **({"image": images} if images else {}),
        ).frames


@pytest.mark.parametrize("name", twins.PUBLISHED)
def test_prompt_to_frames_equals_diffusers(name, tmp_path, monkeypatch):
    from diffusers import CogVideoXDDIMScheduler
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # We take the image's most likely latent, so that a request gives the same video twice.
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )
    _, converted = _convert(name, tmp_path)
    twin = twins.pipeline(name)
    monkeypatch.setattr(
        twin, "scheduler", CogVideoXDDIMScheduler.from_config(twin.scheduler.config)
    )
    images = _images(tmp_path) if name.endswith("i2v") else None
    model = pipeline.Tora2Pipeline.from_checkpoint(converted)
    latents = _latents(twin)
    expected = _diffusers(twin, model.tokenizer, latents, images)
    wanted = []
    for index, prompt in enumerate(twins.PROMPTS):
        fields = {"prompt": prompt, "frames": twins.FRAMES, "height": twins.HEIGHT}
        fields |= {"width": twins.WIDTH}
        fields |= {"image": f"{index}.png"} if images else {}
        wanted.append(request.parse_request(fields, tmp_path, model.config, model.tokenizer))
    inputs = [conditioning.request_inputs(model.config, model.tokenizer, item) for item in wanted]
    result = model.generate_batch(
        conditioning.batch_inputs(inputs),
        seeds=[0, 1],
        settings=pipeline.SampleSettings(steps=4, scheduler="ddim"),
        initial_latents=np.moveaxis(latents, 2, -1),
    )
    assert relative_error(result.video, np.stack(expected)) < PIPELINE_TOLERANCE
