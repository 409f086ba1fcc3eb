"""Tora's motion stages and the motion VAE, on folders of clips and a converted tiny base."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import av
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from convert.checkpoints.bundle import make_bundle
from convert.families.cogvideox import convert_folder
from tests.data.test_clip_folder import damage, model, write_clips
from tests.support import cogvideox_twins
from tora2_jax.config.train import ClipFolderConfig, TrainConfig
from tora2_jax.data.loader import example_or_next
from tora2_jax.data.pool import Pool
from tora2_jax.sampling import command as sampling
from tora2_jax.sampling import pipeline
from tora2_jax.train import loop, state
from tora2_jax.train.stages import diffusion, motion_vae
from tora2_jax.types import Inputs
from tora2_jax.weights import checkpoint
from tora2_jax.weights.run_networks import frozen_files

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "seed": 0,
    "batch_size": 2,
    "mesh.data": 1,
    "steps": 40,
    "optim.warmup_steps": 1,
    "optim.learning_rate": 0.02,
    "model.frames": 9,
    "model.transformer.rematerialize": "none",
    "model.max_entities": 1,
    "model.max_references": 1,
    "model.motion.width": 8,
    "model.motion.norm_groups": 4,
}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Programs are compiled once where several runs share them."""
    settings = {
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("compiled")), None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
    }
    for turn in (0, 1):
        for name, values in settings.items():
            jax.config.update(name, values[turn])
        compilation_cache.reset_cache()  # it reads its folder once
        if turn == 0:
            yield {name.upper(): str(values[0]) for name, values in settings.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Makes converted bases by name, each once."""
    made = {}

    def base(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder / "base"
            convert_folder(cogvideox_twins.save(name, folder / "download"), made[name])
        return made[name]

    return base


def config_of(name: str, base: Path, clips: Path, folder: Path, **changes):
    """A config of configs/ on a base, at a tiny size, with everything below `folder`."""
    config = importlib.import_module(f"configs.{name}").get_config(str(base))
    for place, value in (SMALL | changes).items():
        *parents, last = place.split(".")
        target = config
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)
    config.clips.folder, config.cache_dir = str(clips), str(folder / "cache")
    config.export = str(folder / name)
    return config


def losses(workdir: Path) -> np.ndarray:
    rows = (workdir / "metrics" / "losses.jsonl").read_text().splitlines()
    return np.array([json.loads(row)["loss"] for row in rows])


def assert_falls(values: np.ndarray):
    assert values[-10:].mean() < 0.8 * values[:10].mean()


@pytest.mark.long
def test_stage_2_goes_on_where_stage_1_has_ended(bases, clips, compiled, tmp_path):
    base = bases("cogvideox_5b")
    overrides = SMALL | {
        "clips.folder": clips,
        "cache_dir": tmp_path / "cache",
        "export": tmp_path / "stage1",
    }
    command = [
        *(sys.executable, "-m", "tora2_jax.train"),
        *(f"--config=configs/motion_stage1.py:{base}", f"--workdir={tmp_path / 'work1'}"),
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | compiled)
    assert_falls(losses(tmp_path / "work1"))
    assert len(Pool(next((tmp_path / "cache").glob("pool-*")))) == 3

    config = config_of("motion_stage2", base, clips, tmp_path)
    config.weights.motion = str(tmp_path / "stage1")
    _, start = state.init_state(config, state.find_stage(config))
    made, metadata = checkpoint.load_component(tmp_path / "stage1" / "motion.safetensors")
    assert {path.removeprefix("tora2.") for path in start.trainable} <= made.keys()
    for path, value in start.trainable.items():
        own = made[path.removeprefix("tora2.")].astype(np.float32)
        np.testing.assert_array_equal(value, own)
    assert metadata["stage"] == "motion" and metadata["model"]["frames"] == 9

    frozen = jax.tree.map(np.array, start.frozen)
    end = loop.train(config, tmp_path / "work2")
    assert_falls(losses(tmp_path / "work2"))
    assert all((frozen[path] == end.frozen[path]).all() for path in frozen)
    assert {path.split(".")[1] for path in end.trainable} == {"trajectory_extractor", "transformer"}
    after, _ = checkpoint.load_component(tmp_path / "motion_stage2" / "motion.safetensors")
    assert any((made[path] != after[path]).any() for path in made)


@pytest.mark.long
def test_a_resumed_stage_is_exact_on_a_base_with_first_frames(bases, clips, tmp_path):
    base = bases("cogvideox_5b_i2v")

    def run(folder: str, steps: int):
        changes = {"steps": steps, "clips.draws": 2, "model.width": 32}
        config = config_of("motion_stage2", base, clips, tmp_path, **changes)
        config.weights.motion = None
        return loop.train(config, tmp_path / folder)

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4)
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(losses(tmp_path / "whole"), losses(tmp_path / "parts"))

    rows = Pool(next((tmp_path / "cache").glob("pool-*")))
    first, again = rows[0], rows[3]  # two draws of one clip
    assert len(rows) == 6
    np.testing.assert_allclose(first["latents"], again["latents"], atol=1e-5)
    for name in ("motion_latents", "image_latents"):
        assert np.abs(first[name] - again[name]).max() > 1e-3
    assert not first["image_latents"][1:].any()


@pytest.mark.long
def test_the_motion_vae_learns_in_a_slot_of_its_own(bases, clips, tmp_path):
    base = bases("cogvideox_5b")
    config = importlib.import_module("configs.motion_vae").get_config(str(base))
    config.steps, config.batch_size, config.workers = 2, 2, 0
    config.mesh.data = 1
    config.clips.folder, config.clips.crop_size = str(clips), 16
    config.cache_dir = str(tmp_path / "cache")
    config.export = str(tmp_path / "motion_vae.safetensors")
    loop.train(config, tmp_path / "work")
    assert np.isfinite(losses(tmp_path / "work")).all()
    before, _ = checkpoint.load_component(base / "vae")
    after, metadata = checkpoint.load_component(config.export)
    assert before.keys() == after.keys()
    assert any((np.float32(before[path]) != np.float32(after[path])).any() for path in before)
    assert metadata["model"]["vae"]["scaling_factor"] == config.model.vae.scaling_factor

    stage = config_of("motion_stage1", base, clips, tmp_path)
    stage.weights.motion_vae = config.export
    files = frozen_files(stage)
    assert files == {"vae": str(base / "vae"), "motion_vae": config.export}


def test_the_motion_vae_goes_on_without_clips_that_turn_out_damaged(tmp_path):
    folder = write_clips(tmp_path)
    damage(folder, "clip1")

    def crops(faulty: str):
        clips = ClipFolderConfig(folder=str(folder), faulty=faulty, crop_size=16)
        return motion_vae.source(TrainConfig(stage="motion_vae", clips=clips, model=model()))

    named = [crops("skip").describe(index)["clip"] for index in range(20)]
    damaged = named.index("clip1")
    used = next(index for index in range(damaged, 20) if named[index] != "clip1")
    example, position = example_or_next(crops("skip"), damaged)
    assert position == used and example["video"].shape == (9, 16, 16, 3)
    assert crops("skip").describe(used) == {"clip": named[used], "frame": 3}
    with pytest.raises(loop.TrainError, match=r"clip1\.mp4: is damaged"):
        example_or_next(crops("refuse"), damaged)
    damage(folder, "clip0")
    damage(folder, "clip2")
    with pytest.raises(loop.TrainError, match=r"16 examples in a row.*clip1\.mp4: is damaged"):
        example_or_next(crops("skip"), damaged)


def test_all_problems_are_named_before_anything_is_loaded(tmp_path):
    config = config_of("motion_stage1", tmp_path / "absent", tmp_path, tmp_path)
    config.model.height = 100
    config.clips.estimator = "nowhere:Flow"
    with pytest.raises(loop.TrainError) as error:
        loop.train(config, tmp_path / "work")
    for part in (
        "weights.transformer",
        "weights.vae",
        "tokenizer",
        "height: 100",
        "nowhere",
        "mp4",
    ):
        assert part in str(error.value)
    config = importlib.import_module("configs.motion_vae").get_config(str(tmp_path / "absent"))
    config.clips.crop_frames, config.clips.crop_size, config.clips.folder = 5, 1000, str(tmp_path)
    with pytest.raises(loop.TrainError, match=r"(?s)crop_frames.*crop_size.*mp4"):
        loop.train(config, tmp_path / "work")


def test_weights_are_checked_before_clips_are_encoded(bases, clips, tmp_path):
    base = bases("cogvideox_5b")
    config = config_of("motion_stage1", base, clips, tmp_path)
    (tmp_path / "empty").mkdir()
    config.weights.motion = str(tmp_path / "empty")
    config.model.transformer.norm_eps = 0.5
    with pytest.raises(loop.TrainError) as error:
        loop.train(config, tmp_path / "work")
    assert "config.weights.motion: " in str(error.value)
    assert "norm_eps is 0.5" in str(error.value)
    assert not list(tmp_path.rglob("pool-*"))


def test_clips_are_looked_at_once_per_folder(bases, clips, tmp_path, monkeypatch):
    """Before a clip is encoded, and before a sample is made."""
    opened, open_file = [], av.open

    def counted(file, *rest, **settings):
        opened.append(Path(file).name)
        return open_file(file, *rest, **settings)

    monkeypatch.setattr(av, "open", counted)
    config = config_of("motion_stage1", bases("cogvideox_5b"), clips, tmp_path)
    first = diffusion._plan(config)[0]
    assert sorted(opened) == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    assert diffusion._plan(config)[0] == first and len(opened) == 3
    assert len(motion_vae._FlowCrops(config)._folder.clips) == len(opened) == 3


def test_settings_that_do_not_go_with_clips_are_refused(tmp_path):
    absent = tmp_path / "absent"
    config = config_of("motion_stage1", absent, absent, tmp_path, stage="vae", data_size=5)
    config.clips.folder, config.clips.motion, config.clips.draws = None, "none", 0
    with pytest.raises(loop.TrainError) as error:
        loop.train(config, tmp_path)
    for part in ("base, motion, motion_vae, tora2", "data_size", "folder", "motion", "draws"):
        assert part in str(error.value)
    with pytest.raises(loop.TrainError, match=r"config\.clips is needed"):
        loop.train(loop.TrainConfig(stage="motion_vae"), tmp_path)


class _Pipeline:
    """Notes how it is made and what it is asked for."""

    def __init__(self, loaded, vae_memory):
        self.memory = vae_memory

    def generate_batch(self, inputs, seeds):
        self.inputs = inputs
        return pipeline.Sample(np.zeros((1, 9, 16, 24, 3)), np.zeros(0))


class _Clips:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int):
        if index == 0:
            raise OSError("damaged")
        flow = np.full((9, 16, 24, 3), 0.5, np.float32)
        fields = dict.fromkeys(Inputs._fields) | {"flow_video": flow}
        return Inputs(**fields), np.zeros((9, 16, 24, 3), np.uint8)


def test_a_sample_is_of_a_clip_that_can_be_read_and_decoded_in_tiles(tmp_path, monkeypatch):
    made, types = [], []
    monkeypatch.setattr(diffusion, "trained_model_config", lambda config: config.model)
    monkeypatch.setattr(diffusion, "frozen_networks", lambda *given: types.append(given[2]))
    monkeypatch.setattr(diffusion, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(diffusion, "_examples", lambda *given: _Clips())

    def make(loaded, **settings):
        made.append(_Pipeline(loaded, **settings))
        return made[-1]

    monkeypatch.setattr(pipeline, "Tora2Pipeline", make)
    absent = tmp_path / "absent"
    config = config_of("motion_stage1", absent, absent, tmp_path, dtype="bfloat16")
    model = Mock(spec=diffusion.DiffusionModel, tora2=None, text=None)
    frames = diffusion.sample(config, model, 1)
    assert frames.shape == (9, 16, 48, 3) and (frames[:, :, :24] == 191).all()
    assert made[0].memory == "tiled" and made[0].inputs.flow_video.shape == (1, 9, 16, 24, 3)
    assert types == [np.dtype("bfloat16")]


@pytest.mark.long
def test_temporal_patches_train_and_the_bundle_samples(bases, clips, tmp_path):
    for name in ("cogvideox_1_5_5b_i2v", "cogvideox_5b"):
        folder = tmp_path / name
        changes = {"steps": 2, "model.fps": 8, "model.transformer.rematerialize": "full"}
        config = config_of("motion_stage1", bases(name), clips, folder, **changes)
        config.sample_every = 2
        loop.train(config, folder / "work")
        assert np.isfinite(losses(folder / "work")).all()
        assert (folder / "work" / "samples" / "00000002.mp4").is_file()
    config.weights.motion = config.export
    make_bundle(config, folder / "bundle")
    request = {"prompt": "A man.", "entities": [{"word": "man", "trajectory": [[9, 9], [200, 90]]}]}
    (folder / "request.json").write_text(json.dumps(request))
    options = sampling.Options(
        checkpoint=folder / "bundle",
        request=folder / "request.json",
        output=folder / "video.mp4",
        steps=2,
    )
    assert all(path.is_file() for path in sampling.run(options))
