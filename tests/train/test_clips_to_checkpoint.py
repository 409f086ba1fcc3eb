"""scripts/clips_to_checkpoint.sh, as a user runs it: downloads and clips in, a checkpoint out."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file

from convert.__main__ import main
from convert.families import tora_sat
from tests.support import (
    cogvideox_twins,
    encoder_twins,
    recognition_twins,
    tiny_detector,
    tora_twins,
)
from tora2_jax.config import to_dict
from tora2_jax.data.pool import Pool
from tora2_jax.data.record_files import write_record
from tora2_jax.media.video import read_video, write_image
from tora2_jax.types import EntityRecord, Record
from tora2_jax.weights import bundle, checkpoint

# Programs are compiled fast, and run slowly.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "clips_to_checkpoint.sh"
BASE, STEPS = "cogvideox_5b", 4
CAPTION = "A man, a kite."
COLORS = {"man": (250, 240, 10), "kite": (10, 40, 240)}  # what has no blue is a face
SIZES = {
    "steps": STEPS,
    "batch_size": 4,
    "checkpoint_every": 1,
    "optim.warmup_steps": 1,
    "mesh.fsdp": 2,
    "mesh.sequence": 2,
    "mesh.tensor": 2,
    "clips.entities.smallest_cut": 8,
    "clips.draws": 2,
    "model.max_entities": 2,
    "model.max_references": 2,
    "model.dino.image_size": 28,
    "model.personalization.width": 24,
    "model.personalization.queries": 3,
    "model.personalization.num_layers": 1,
    "model.personalization.num_heads": 2,
    "model.personalization.head_dim": 8,
    "model.personalization.mlp_ratio": 1,
    "model.personalization.cross_heads": 2,
    "model.personalization.cross_head_dim": 8,
    "model.binding.num_heads": 2,
    "model.binding.head_dim": 8,
    "model.binding.word_tokens": 4,
    "model.binding.contrast_width": 8,
}


def discs(places: dict[str, np.ndarray], height: int, width: int, radius: int) -> tuple:
    """Frames with a disc at each place, and the mask of each."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    count = len(next(iter(places.values())))
    frames, masks = np.full((count, height, width, 3), 235, np.uint8), {}
    for word, track in places.items():
        distance = np.hypot(columns - track[:, 0, None, None], rows - track[:, 1, None, None])
        masks[word] = distance < radius
        frames[masks[word]] = COLORS[word]
    return frames, masks


def write_clips(folder: Path) -> Path:
    """Two clips: a man whose face is all of him, and a kite."""
    height, width, count = cogvideox_twins.HEIGHT, cogvideox_twins.WIDTH, 27
    for number in range(2):
        run = np.linspace(0, 1, count)
        places = {
            "man": np.stack([8 + 10 * run, 10 + 20 * run + 4 * number], -1),
            "kite": np.stack([22 - 10 * run, 38 - 16 * run - 4 * number], -1),
        }
        frames, masks = discs(places, height, width, 7)
        entities = tuple(
            EntityRecord(
                word=word,
                span=(CAPTION.index(word), CAPTION.index(word) + len(word)),
                kind="human" if word == "man" else "object",
                images=(),
                track=places[word],
                visible=np.ones(count, bool),
                mask=masks[word],
            )
            for word in places
        )
        write_record(folder, Record(f"clip-{number}", CAPTION, frames, 8, entities))
    return folder


def write_request(folder: Path) -> Path:
    """The man and the kite along paths, each with a photo."""
    entities = []
    for word in COLORS:
        picture, _ = discs({word: np.array([[100.0, 100.0]])}, 200, 200, 40)
        write_image(folder / f"{word}.png", picture[0])
        entities.append(
            {
                "word": word,
                "kind": "human" if word == "man" else "object",
                "images": [f"{word}.png"],
                "trajectory": [[40, 40], [200, 180]],
            }
        )
    (folder / "request.json").write_text(json.dumps({"prompt": CAPTION, "entities": entities}))
    return folder / "request.json"


def downloads(folder: Path) -> dict[str, Path]:
    """Random PyTorch weights of every network, in the files in which people have them."""
    face, reid = recognition_twins.face_twin(), recognition_twins.FastReid
    dinov2 = transformers.Dinov2Config(
        image_size=45, patch_size=7, hidden_size=24, num_hidden_layers=2, num_attention_heads=3
    )
    made = {
        "cogvideox": cogvideox_twins.save(BASE, folder / "CogVideoX-5b", dtype=torch.bfloat16),
        "tora": tora_twins.save_sat(
            tora_twins.tiny_sat(BASE, torch.bfloat16), folder / "tora" / tora_sat.FILE
        ),
        "dinov2": encoder_twins.save(transformers.Dinov2Model(dinov2), folder / "dinov2"),
        "arcface": folder / "backbone.pth",
        "reid": folder / "model_best.pth",
        "face-models": tiny_detector.save(folder / "antelopev2" / "scrfd_10g_bnkps.onnx").parent,
    }
    torch.save(face.state_dict(), made["arcface"])
    torch.save({"model": recognition_twins.reid_twin(reid).state_dict()}, made["reid"])
    return made


def saved_steps(out: Path) -> list[int]:
    return [int(path.name) for path in out.glob("run/checkpoints/*") if path.name.isdigit()]


def kill_once_saved(script: subprocess.Popen, out: Path) -> int:
    """Kills the training as soon as it has saved; returns the last step that was saved then."""
    while not saved_steps(out) and script.poll() is None:
        time.sleep(0.01)
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(script.pid)], capture_output=True, text=True
    )
    for line in listed.stdout.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        if "tora2_jax.train" in arguments:
            os.kill(int(pid), signal.SIGKILL)
    return max(saved_steps(out), default=0)


def run(command: list[str], out: Path, log: Path) -> tuple[int, str, int]:
    """Exit code and output of the script, and the step after which its training was killed."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "XLA_FLAGS": XLA_FLAGS,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with log.open("w") as output:
        script = subprocess.Popen(
            command, env=environment, cwd=out.parent, stdout=output, stderr=output
        )
        killed_at = kill_once_saved(script, out)
        code = script.wait()
    return code, log.read_text(), killed_at


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run of the script, whose training is killed once."""
    folder = tmp_path_factory.mktemp("clips_to_checkpoint")
    given, out = downloads(folder), folder / "out"
    command = [str(SCRIPT), *(part for name in given for part in (f"--{name}", str(given[name])))]
    command += ["--clips", str(write_clips(folder / "clips")), "--out", "out"]
    command += ["--request", str(write_request(folder)), "--sample-options", "--steps 2", "--"]
    command += [f"--config.{name}={value}" for name, value in SIZES.items()]  # nothing else
    code, told, killed_at = run(command, out, folder / "log.txt")
    assert code == 0, told
    return SimpleNamespace(out=out, told=told, killed_at=killed_at, given=given)


@pytest.mark.long
def test_a_killed_training_goes_on_and_is_whole(done):
    assert 0 < done.killed_at < STEPS
    assert done.told.count("training ended with code 137") == 1
    rows = (done.out / "run" / "metrics" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(json.loads(row)["loss"]) for row in rows)
    clips = Pool(next((done.out / "cache").glob("pool-*")))
    assert len(clips) == 4
    rows = [clips[index] for index in range(4)]
    for name in ("on", "word_mask", "reference_mask"):
        assert all(row[name][0].any() and row[name][1].any() for row in rows), name
    assert any(row["prior_mask"][0].any() for row in rows)  # the man's face was found


@pytest.mark.long
def test_the_video_has_the_size_of_the_model(done):
    frames, fps = read_video(done.out / f"video_{STEPS}.mp4")
    size = cogvideox_twins.FRAMES, cogvideox_twins.HEIGHT, cogvideox_twins.WIDTH
    assert frames.shape == (*size, 3) and fps == 8


@pytest.mark.long
def test_diffusers_loads_what_comes_out(done):
    twin, folder = cogvideox_twins.pipeline(BASE), done.out / f"diffusers_{STEPS}"
    loaded = CogVideoXPipeline(
        tokenizer=transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype="auto"
        ),
        vae=diffusers.AutoencoderKLCogVideoX.from_pretrained(
            folder / "vae", torch_dtype=torch.bfloat16
        ),
        transformer=diffusers.CogVideoXTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.bfloat16
        ),
        scheduler=diffusers.CogVideoXDPMScheduler.from_pretrained(folder / "scheduler"),
    )
    for part in ("transformer", "vae", "text_encoder"):  # all of it frozen
        expected = getattr(twin, part).state_dict()
        found = getattr(loaded, part).state_dict()
        assert found.keys() == expected.keys(), part
        for name, value in found.items():
            assert value.dtype == torch.bfloat16, (part, name)
            assert torch.equal(value, expected[name].bfloat16()), (part, name)

    before = tora_twins.tensors(BASE, torch.bfloat16)
    after = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    trained = {name for name in after if re.match(r"(traj_extractor|fuser)\..*(weight|bias)", name)}
    assert all(torch.isfinite(after[name].float()).all() for name in trained)
    # bfloat16 shows a step of 3e-6 where a number is small, and every map has such numbers.
    changed = {name for name in trained if not torch.equal(before[name], after[name])}
    maps = {name for name in trained if after[name].ndim > 1}
    assert maps <= changed and len(maps) > 10


@pytest.mark.long
def test_personalization_and_encoders_come_back_from_the_exported_folder(done, tmp_path):
    kept = done.out / f"checkpoint_{STEPS}"
    source = done.out / f"diffusers_{STEPS}"
    trained, _ = checkpoint.load_component(source / "tora2" / "personalization.safetensors")
    starts_at_zero = [path for path in trained if path.endswith("cross_attention.output.kernel")]
    assert starts_at_zero and all(np.any(trained[path]) for path in starts_at_zero)

    assert main(["tora", "--src", str(source), "--dst", str(tmp_path / "again")]) == 0
    ours, theirs = (to_dict(bundle.load_config(path)) for path in (tmp_path / "again", kept))
    assert ours == theirs
    names = ("transformer", "motion", "personalization", "vae", "text", "dino", "face", "object")
    for name in names:
        ours, theirs = (
            checkpoint.load_component(checkpoint.component_path(path, name))[0]
            for path in (tmp_path / "again", kept)
        )
        assert ours.keys() == theirs.keys(), name
        for path, value in ours.items():
            assert value.dtype == theirs[path].dtype and (value == theirs[path]).all(), path
