"""From a request file to files: errors all at once, nothing half written, exact repetition."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tora2_jax import bundle, checkpoint, config, sampling
from tora2_jax.checkpoint import CheckpointError

ROOT = Path(__file__).resolve().parent.parent
TOY = ROOT / "checkpoints" / "toy"


def write_request(folder: Path, **changes) -> Path:
    Image.new("RGBA", (32, 40), (200, 30, 30, 255)).save(folder / "kite.png")
    request = {
        "prompt": "A man and a kite.",
        "entities": [
            {"word": "man", "kind": "human", "trajectory": [[10, 10], [200, 200]]},
            {"word": "kite", "kind": "object", "images": ["kite.png"], "trajectory": [[50, 60]]},
        ],
    }
    path = folder / "request.json"
    path.write_text(json.dumps(request | changes))
    return path


def options(folder: Path, request: Path, **changes) -> sampling.Options:
    settings = {"checkpoint": TOY, "request": request, "output": folder / "out.mp4", "steps": 2}
    return sampling.Options(**(settings | changes))


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    request = write_request(
        tmp_path,
        height=100,
        frames=16,
        colour="red",
        entities=[
            {"word": "dog", "trajectory": [[10, 10], [300, 20]]},
            {"word": "man", "kind": "human", "images": ["absent.png"]},
        ],
    )
    latents = tmp_path / "latents.png"
    command = [sys.executable, "scripts/sample.py", "--checkpoint", str(TOY)]
    command += ["--request", str(request), "--output", str(tmp_path / "out.avi")]
    command += ["--steps", "0", "--save-latents", str(latents)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for field in (
        "--steps",
        "--output",
        "--save-latents",
        "height",
        "frames",
        "colour",
        "entities[0].word",
        "entities[0].trajectory",
        "entities[1].images[0]",
    ):
        assert field in done.stderr, field
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kite.png", "request.json"]


@pytest.mark.parametrize("content", [None, "{}", '{"model": {"size": 3}}', "not json"])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, content):
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(sampling.SamplingError, match="checkpoint"):
        sampling.prepare(options(tmp_path, write_request(tmp_path), checkpoint=folder))


def test_a_bundle_without_weights_names_every_missing_component(tmp_path):
    checkpoint.save_config(tmp_path, config.to_dict(bundle.load_config(TOY)))
    with pytest.raises(CheckpointError) as caught:
        bundle.load_bundle(tmp_path)
    for name in ("transformer", "text", "vae", "motion_vae", "dino", "face", "object"):
        assert f"{name}: " in str(caught.value)


@pytest.mark.long
def test_a_seed_gives_the_same_video_and_latents_can_be_fed_back(tmp_path):
    request = write_request(tmp_path)
    saved = {"save_latents": tmp_path / "l.npz", "save_frames": tmp_path / "f.npy"}
    written = sampling.run(options(tmp_path, request, overlay=True, **saved))
    assert all(path.is_file() for path in written) and len(written) == 4
    frames = np.load(tmp_path / "f.npy")
    latents = np.load(tmp_path / "l.npz")["latents"]
    assert frames.shape == (1, 17, 96, 96, 3) and frames.min() >= 0 and frames.max() <= 1
    assert latents.shape == (1, 5, 8, 24, 24)
    again = {"save_frames": tmp_path / "again.npy"}
    sampling.run(options(tmp_path, request, **again))
    assert (np.load(tmp_path / "again.npy") == frames).all()
    fed = {"init_latents": tmp_path / "l.npz", "save_frames": tmp_path / "fed.npy"}
    sampling.run(options(tmp_path, request, scheduler="ddim", **fed))
    assert not (np.load(tmp_path / "fed.npy") == frames).all()
