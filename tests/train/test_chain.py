"""The diffusion stages one after another from the shipped frozen networks, a few steps each."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.toy_checkpoint import SHIPPED, STAGES
from tora2_jax.config import to_dict
from tora2_jax.data import pool
from tora2_jax.sampling import command
from tora2_jax.train import loop
from tora2_jax.weights import bundle, checkpoint

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "checkpoints" / "toy"
FROZEN = ("vae", "face", "object", "dino")


def moved(place: str, folder: Path) -> str:
    """A place that a config of the chain names, below `folder`."""
    below = place.replace("checkpoints/toy", str(folder / "made"))
    return below.replace("workdirs", str(folder / "parts"))


def small(name: str, folder: Path):
    """A config of the chain with few clips and steps, reading and writing below `folder`."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.steps, config.batch_size, config.data_size = 2, 2, 16
    config.mesh.data = 1
    config.cache_dir, config.tokenizer = str(folder / "cache"), str(TOY / "tokenizer")
    for part, place in to_dict(config.weights).items():
        if part in FROZEN:
            setattr(config.weights, part, str(TOY / f"{part}.safetensors"))
        elif place is not None:
            setattr(config.weights, part, moved(place, folder))
    stage = {Path(path).stem: stage for stage, path in STAGES.items()}[name]
    config.export = moved(SHIPPED.get(stage, f"workdirs/{stage}/trained"), folder)
    return config


@pytest.mark.long
def test_base_motion_and_joint_stage_end_in_a_checkpoint_that_samples(tmp_path):
    for name in ("toy_base", "toy_base_fine", "toy_motion", "toy", "toy_fine"):
        loop.train(small(name, tmp_path), tmp_path / name)
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

    for folder in (made, tmp_path / "toy_fine"):
        options = command.Options(
            checkpoint=folder,
            request=ROOT / "examples" / "request.json",
            output=tmp_path / "video.mp4",
            steps=2,
        )
        assert all(path.is_file() for path in command.run(options))
