"""Folders of clips, and the motion that is read from them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tora2_jax.config import (
    ModelConfig,
    TransformerConfig,
    cogvideox_1_5_5b,
    cogvideox_5b,
    cogvideox_5b_i2v,
    to_dict,
)
from tora2_jax.config.train import ClipFolderConfig, TrainConfig
from tora2_jax.data import clip_folder, clip_look, pool
from tora2_jax.errors import TrainError
from tora2_jax.media.video import write_video
from tora2_jax.text import load_tokenizer
from tora2_jax.trajectory import optical_flow

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"

MOTIONS = ((1, 0), (-2, 1), (0, 0))  # pixels per frame, (x, y)


def texture(height: int = 96, width: int = 144) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def moving(step: tuple[int, int], frames: int, size=(60, 100)) -> np.ndarray:
    picture = texture()
    shifted = [np.roll(picture, (step[1] * k, step[0] * k), (0, 1)) for k in range(frames)]
    return np.stack(shifted)[:, : size[0], : size[1]]


def write_clips(folder: Path) -> Path:
    """Three clips of 25 frames, 8 per second, with captions; the last one stands still."""
    (folder / "labels").mkdir(parents=True)
    for index, step in enumerate(MOTIONS):
        write_video(folder / "videos" / f"clip{index}.mp4", moving(step, 25))
        (folder / "labels" / f"clip{index}.txt").write_text("A man and a red kite.\nMore.")
    return folder


def model(**sizes) -> ModelConfig:
    return ModelConfig(**({"height": 48, "width": 64, "frames": 9, "fps": 8} | sizes))


def damage(folder: Path, name: str) -> None:
    """Where the first look does not see it: only some frames cannot be decoded."""
    path = folder / "videos" / f"{name}.mp4"
    data = path.read_bytes()
    first, end = len(data) // 2, len(data) * 9 // 10
    path.write_bytes(data[:first] + b"\xff" * (end - first) + data[end:])


def clip_examples(folder: Path, sizes: ModelConfig, **settings) -> clip_folder.ClipExamples:
    clips = ClipFolderConfig(folder=str(folder), **settings)
    tokenizer = load_tokenizer(TOY / "tokenizer")
    return clip_folder.ClipExamples(TrainConfig(clips=clips, model=sizes), sizes, tokenizer)


def test_the_pool_lists_clips_that_turn_out_damaged(tmp_path, monkeypatch):
    damage(write_clips(tmp_path / "clips"), "clip1")
    monkeypatch.setattr(pool, "_features", lambda networks, model, inputs, video: {"x": video})

    def build(folder: str, **settings) -> None:
        examples = clip_examples(tmp_path / "clips", model(motion=None), **settings)
        networks = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        devices = jax.local_devices()[:1]
        pool.build(tmp_path / folder, model(), examples, lambda: networks, devices)

    with pytest.raises(TrainError, match=r"clip1\.mp4: is damaged"):
        build("strict")
    build("skipping", faulty="skip", draws=2)
    stored = json.loads((tmp_path / "skipping" / "pool.json").read_text())
    assert stored["size"] == 6 and stored["replaced"] == {"1": 2, "4": 5}
    assert stored["examples"] == {
        str(index): {"clip": f"clip{index % 3}", "draw": index // 3} for index in (1, 2, 4, 5)
    }


def test_clips_are_encoded_again_only_if_an_example_changes(tmp_path):
    write_clips(tmp_path)

    def key(sizes: ModelConfig | None = None, **settings) -> str:
        examples = clip_examples(tmp_path, sizes or model(), **settings)
        return pool.fingerprint(model(), examples, [])

    for policy in ("none", "full", "offload"):
        sizes = model(transformer=TransformerConfig(rematerialize=policy))
        assert key(sizes) == key(), policy
    for name, value in {"image_dropout": 0.5, "crop_frames": 17, "crop_size": 64}.items():
        assert key(**{name: value}) == key(), name
    for name, value in {"image_noise": (0.0, 1.0), "draws": 2, "motion": "dense"}.items():
        assert key(**{name: value}) != key(), name
    assert key(model(transformer=TransformerConfig(max_text_length=10))) != key()
    # As earlier versions of configs/motion_stage1.py and others have it.
    own = clip_examples(tmp_path, model()).identity
    earlier = to_dict(TransformerConfig(rematerialize="full"))
    del earlier["unroll_layers"]
    assert own["sizes"]["transformer"] == earlier
    names = ("image_dropout", "crop_frames", "crop_size")
    assert [own["settings"][name] for name in names] == [0.05, 9, 256]


def test_clips_are_cut_scaled_and_cropped(tmp_path):
    frames = np.stack([np.full((40, 80, 3), 10 * k, np.uint8) for k in range(25)])
    frames[:, :, :8] = 255  # cropped away: the picture is too wide by more than that
    write_video(tmp_path / "videos" / "one.mp4", frames, fps=16)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "one.txt").write_text("\n A cat. \nNot read.\n")
    settings = ClipFolderConfig(folder=str(tmp_path))
    folder = clip_folder.ClipFolder(settings, model(height=48, width=48))
    assert len(folder) == 1 and folder.clips[0].caption == "A cat."
    # Of 25 frames every second is used, 17 in all: 3 are left out in front.
    assert folder.clips[0].frames == tuple(range(3, 20, 2))
    video = folder.read(0)
    assert video.shape == (9, 48, 48, 3) and video.dtype == np.uint8
    levels = video.mean((1, 2, 3))
    np.testing.assert_allclose(levels, 10 * np.arange(3, 20, 2), atol=3)
    assert np.abs(folder.read(0, slice(2, 4)) - video[2:4].astype(int)).max() == 0
    exact = clip_folder.ClipFolder(settings, model(frames=25, fps=16))
    assert exact.clips[0].frames == tuple(range(25))


def test_all_problems_of_a_folder_are_named(tmp_path):
    write_video(tmp_path / "videos" / "short.mp4", moving((1, 0), 8))
    write_video(tmp_path / "videos" / "slow.mp4", moving((1, 0), 9), fps=4)
    write_video(tmp_path / "videos" / "silent.mp4", moving((1, 0), 9))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("short", "slow", "broken", "lonely"):
        (labels / f"{name}.txt").write_text("A dog.")
    (labels / "silent.txt").write_text(" \n")
    write_video(tmp_path / "videos" / "mute.mp4", moving((1, 0), 9))
    settings = ClipFolderConfig(folder=str(tmp_path), estimator="math:nothing")
    with pytest.raises(TrainError) as error:
        clip_folder.ClipFolder(settings, model(height=50, frames=8))
    found = str(error.value).splitlines()
    for parts in (
        ("estimator", "math:nothing"),
        ("height", "50"),
        ("frames", "8"),
        ("lonely.txt", "no clip"),
        ("mute.txt", "missing"),
        ("silent.txt", "empty"),
        ("broken.mp4", "damaged"),
        ("slow.mp4", "4 frames per second"),
    ):
        assert any(all(part in line for part in parts) for line in found), parts
    faults = clip_folder.problems(ClipFolderConfig(folder=str(tmp_path)), model())
    assert any("short.mp4: has 8 frames" in fault for fault in faults)
    assert clip_folder.problems(ClipFolderConfig(folder=str(tmp_path / "no")), model())


@pytest.mark.parametrize(
    ("preset", "sizes", "fields"),
    [
        (cogvideox_5b_i2v, {"height": 32, "frames": 13}, ["height", "frames"]),
        (cogvideox_1_5_5b, {"width": 2416}, ["width"]),
        (cogvideox_5b, {"frames": 0, "fps": 0}, ["frames", "fps"]),
        (cogvideox_5b, {"frames": 1}, ["frames"]),
        (cogvideox_5b_i2v, {}, []),
    ],
)
def test_sizes_that_the_model_cannot_make_are_refused(tmp_path, preset, sizes, fields):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "broken.mp4").touch()
    changed = dataclasses.replace(preset(), **sizes)
    faults = clip_folder.problems(ClipFolderConfig(folder=str(tmp_path)), changed)
    named = [fault.split(":")[0] for fault in faults if fault.startswith("config.model")]
    assert named == [f"config.model.{field}" for field in fields]


def test_dense_flow_is_the_motion_of_the_picture():
    video = moving((2, -1), 5, (80, 120))
    flow = optical_flow.dense_flow(optical_flow.DISFlow(), video)
    assert flow.shape == (5, 80, 120, 2) and not flow[0].any()
    inner = flow[1:, 16:-16, 16:-16].reshape(-1, 2)
    np.testing.assert_allclose(np.median(inner, 0), [2, -1], atol=0.1)
    rng = np.random.default_rng(0)
    still = clip_folder.motion_of(
        np.repeat(video[:1], 5, 0), ClipFolderConfig(), optical_flow.DISFlow(), rng
    )
    assert not still.any()


def test_paths_follow_the_flow_with_fractions_and_leave_for_good():
    flow = np.zeros((6, 32, 48, 2), np.float32)
    flow[1:] = (0.25, -0.5)
    tracks, visible = optical_flow.follow(flow, np.array([[10.5, 20.5], [5.5, 1.5]]))
    np.testing.assert_allclose(tracks[0, -1], [10.5 + 5 * 0.25, 20.5 - 5 * 0.5])
    assert visible[0].all()
    assert visible[1].tolist() == [True] * 4 + [False] * 2
    flow[3:] = (0, 2)  # back from the border
    _, visible = optical_flow.follow(flow, np.array([[5.5, 0.75]]))
    assert visible[0].tolist() == [True] * 2 + [False] * 4
    ramp = np.zeros((2, 4, 8, 2), np.float32)
    ramp[1, :, :, 0] = np.arange(8)
    tracks, _ = optical_flow.follow(ramp, np.array([[2.75, 2.0], [0.0, 0.0]]))
    np.testing.assert_allclose(tracks[:, 1, 0], [2.75 + 2.25, 0.0])


def test_starts_are_drawn_where_it_moves_whatever_the_clip():
    rng = np.random.default_rng(0)
    still = np.zeros((96, 64, 2), np.float32)
    counts = {len(optical_flow.draw_starts(still, rng, 32, 16)) for _ in range(60)}
    assert counts == set(range(1, 7))  # the grid has 3 x 2 places
    one = still.copy()
    one[:, :32] = (3, 4)
    for _ in range(60):
        starts = optical_flow.draw_starts(one, rng, 32, 16)
        assert 1 <= len(starts) <= 3 and (starts[:, 0] < 32).all()
        assert len(np.unique(starts, axis=0)) == len(starts)
    fast = np.full((96, 64, 2), 0.01, np.float32)
    fast[:, 32:] = 1.0
    drawn = [optical_flow.draw_starts(fast, rng, 32, 1)[0, 0] for _ in range(200)]
    assert np.mean(np.array(drawn) > 32) > 0.95
    tiny = optical_flow.draw_starts(np.ones((8, 8, 2), np.float32), rng, 32, 16)
    assert tiny.shape == (1, 2)


def test_an_estimator_is_found_by_its_place():
    assert isinstance(
        optical_flow.load_estimator("tora2_jax.optical_flow:DISFlow"), optical_flow.DISFlow
    )
    absent = ("tora2_jax.optical_flow:Nothing", "no_such_module:X", "", "tora2_jax")
    for name in (*absent, "numpy:pi", "numpy:array", "os:getcwd"):
        with pytest.raises(ValueError, match="no flow estimator"):
            optical_flow.load_estimator(name)


def test_no_more_clips_than_asked_for_are_used(tmp_path):
    folder = write_clips(tmp_path)
    settings = ClipFolderConfig(folder=str(folder), at_most=1)
    found = clip_look.look_through(settings, model())
    assert [clip.name for clip in found.clips] == ["clip0"]
    assert [clip.name for clip in clip_look.look_through(settings, model(), most=2).clips] == (
        ["clip0"]
    )
