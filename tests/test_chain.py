"""The diffusion stages one after another from the shipped frozen networks, a few steps each."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from tora2_jax import bundle, checkpoint, sampling, train
from tora2_jax.data import pool

ROOT = Path(__file__).resolve().parent.parent
TOY = ROOT / "checkpoints" / "toy"
FROZEN = ("vae", "face", "object", "dino")


def small(name: str, folder: Path):
    """A config of the chain with few clips and steps, reading and writing below `folder`."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.steps, config.batch_size, config.data_size = 2, 2, 16
    config.cache_dir, config.tokenizer = str(folder / "cache"), str(TOY / "tokenizer")
    for part in FROZEN:
        setattr(config.weights, part, str(TOY / f"{part}.safetensors"))
    made = folder / "made"
    for part, place in (("transformer", ""), ("text", ""), ("motion", "stages")):
        if getattr(config.weights, part):
            setattr(config.weights, part, str(made / place / f"{part}.safetensors"))
    config.export = config.export.replace("checkpoints/toy", str(made))
    return config


@pytest.mark.long
def test_base_motion_and_joint_stage_end_in_a_checkpoint_that_samples(tmp_path):
    for name in ("toy_base", "toy_motion", "toy"):
        train.train(small(name, tmp_path), tmp_path / name)
    clips = pool.Pool(next((tmp_path / "cache").iterdir()))
    assert len(clips) == 16
    assert all(np.isfinite(value).all() for value in clips[3].values())

    made = tmp_path / "made"
    before, _ = checkpoint.load_component(made / "stages" / "motion.safetensors")
    after, _ = checkpoint.load_component(made / "motion.safetensors")
    assert before.keys() == after.keys()
    assert any((before[path] != after[path]).any() for path in before)
    for part in FROZEN:
        shutil.copy(TOY / f"{part}.safetensors", made)
    shutil.copytree(TOY / "tokenizer", made / "tokenizer")
    assert bundle.load_config(made).vae.scaling_factor != 0.7  # the measured one

    for folder in (made, tmp_path / "toy"):
        options = sampling.Options(
            checkpoint=folder,
            request=ROOT / "examples" / "request.json",
            output=tmp_path / "video.mp4",
            steps=2,
        )
        assert all(path.is_file() for path in sampling.run(options))
