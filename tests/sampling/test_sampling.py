"""From a request file to files: errors all at once, nothing half written, exact repetition."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import sample as sample_script
from tora2_jax import config
from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.media import video
from tora2_jax.request import Request, load_request
from tora2_jax.sampling import command as sampling
from tora2_jax.sampling.pipeline import Sample
from tora2_jax.weights import bundle, checkpoint, run_networks

ROOT = Path(__file__).resolve().parents[2]
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


def options(folder: Path, request: Path | list[Path], **changes) -> sampling.Options:
    settings = {"checkpoint": TOY, "request": request, "output": folder / "out.mp4", "steps": 2}
    return sampling.Options(**(settings | changes))


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    request = write_request(
        tmp_path,
        height=100,
        frames=16,
        color="red",
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
        "color",
        "entities[0].word",
        "entities[0].trajectory",
        "entities[1].images[0]",
    ):
        assert field in done.stderr, field
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kite.png", "request.json"]


def test_several_requests_share_one_error_and_number_their_videos(tmp_path):
    small = write_request(tmp_path, height=32).rename(tmp_path / "small.json")
    wrong = write_request(tmp_path, frames=16).rename(tmp_path / "wrong.json")
    plain = write_request(tmp_path)
    batch = options(tmp_path, [small, wrong, plain], steps=0, seed=2**32 - 2)
    with pytest.raises(sampling.SamplingError) as error:
        sampling.prepare(batch)
    found = error.value.problems
    assert [problem[:9] for problem in found[:2]] == ["--seed: 4", "--steps: "]
    assert found[2].startswith(f"{wrong}: frames: 16")
    assert f"{small} has 17 frames of 32 x 96, {plain} has 17 frames of 96 x 96" in found[3]
    assert len(found) == 4
    assert [path.name for path in batch.outputs] == ["out_0.mp4", "out_1.mp4", "out_2.mp4"]


def test_a_batch_is_written_request_by_request(tmp_path):
    loaded = [Request(name, height=16, width=16, frames=5, fps=8) for name in ("A cat", "A dog")]
    frames = np.stack([np.zeros((5, 16, 16, 3), np.float32), np.ones((5, 16, 16, 3), np.float32)])
    result = Sample(frames, np.zeros((2, 2, 4, 4, 8), np.float32), tuple(loaded))
    batch = options(
        tmp_path,
        [tmp_path / "a.json", tmp_path / "b.json"],
        save_latents=tmp_path / "l.npz",
        save_frames=tmp_path / "f.npy",
    )
    written = sampling.write(batch, result)
    names = ["out_0.mp4", "out_0.png", "out_1.mp4", "out_1.png", "l.npz", "f.npy"]
    assert [path.name for path in written] == names
    assert [video.read_video(path)[0].mean() > 128 for path in written[:4:2]] == [False, True]
    assert np.load(tmp_path / "l.npz")["latents"].shape == (2, 2, 8, 4, 4)
    assert np.load(tmp_path / "f.npy").shape == frames.shape


def test_a_still_entity_without_references_is_told_in_one_line(tmp_path, capsys):
    request = write_request(
        tmp_path,
        entities=[
            {"word": "man", "kind": "human", "trajectory": [[10, 10], [10, 10]]},
            {"word": "kite", "kind": "object", "images": ["kite.png"], "trajectory": [[50, 60]]},
        ],
    )
    sampling.prepare(options(tmp_path, request))
    printed = capsys.readouterr().err.splitlines()
    notes = [line for line in printed if "leaves the flow map white" in line]
    assert len(notes) == 1 and "only through the binder" in notes[0]
    assert 'entities[0] "man"' in notes[0] and "entities[1]" not in notes[0]
    moving = load_request(write_request(tmp_path))
    toy = bundle.load_config(TOY)
    assert sampling.still_notes([request], [moving], toy) == []
    toy.personalization = None
    still = load_request(
        write_request(tmp_path, entities=[{"word": "man", "trajectory": [[9, 9]]}])
    )
    assert "does not have" in sampling.still_notes([request], [still], toy)[0]


@pytest.mark.parametrize("content", [None, "{}", '{"model": {"size": 3}}', "not json"])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, content):
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(sampling.SamplingError, match="checkpoint"):
        sampling.prepare(options(tmp_path, write_request(tmp_path), checkpoint=folder))


def test_a_bundle_without_weights_names_every_missing_component(tmp_path):
    checkpoint.save_config(tmp_path, bundle.load_config(TOY))
    with pytest.raises(CheckpointError) as caught:
        bundle.load_bundle(tmp_path)
    for name in ("transformer", "text", "vae", "motion_vae", "dino", "face", "object"):
        assert f"{name}: " in str(caught.value)


def test_places_that_cannot_be_written_are_told_before_sampling(tmp_path):
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "sub"
    wrong = options(
        tmp_path,
        write_request(tmp_path),
        output=inside / "o.mp4",
        save_latents=inside / "l.npz",
        save_frames=tmp_path / "new" / "f.npy",
        checkpoint=tmp_path,
    )
    with pytest.raises(sampling.SamplingError) as error:
        sampling.prepare(wrong)
    found = [text for text in error.value.problems if f"{tmp_path / 'file'} is not" in text]
    assert [text.split(":")[0] for text in found] == ["--output", "--save-latents"]
    assert not any("--save-frames" in text for text in error.value.problems)


def test_a_file_that_cannot_be_written_after_all_is_told(tmp_path):
    wanted = Request("A cat", height=16, width=16, frames=5, fps=8)
    frames, latents = np.zeros((1, 5, 16, 16, 3)), np.zeros((1, 2, 4, 4, 8), np.float32)
    result = Sample(frames, latents, (wanted,))
    (tmp_path / "file").touch()
    late = options(tmp_path, tmp_path / "a.json", save_latents=tmp_path / "file" / "l.npz")
    with pytest.raises(sampling.SamplingError, match=r"only .*out\.mp4, .*out\.png:"):
        sampling.write(late, result)
    with pytest.raises(sampling.SamplingError, match="nothing was written"):
        sampling.write(late._replace(output=tmp_path / "file" / "o.mp4"), result)


def test_damaged_latents_are_refused(tmp_path):
    path = tmp_path / "l.npz"
    np.savez(path, latents=np.zeros(1000, np.float32))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(sampling.SamplingError, match=r"--init-latents: .* cannot be read"):
        sampling._initial_latents(path, None, None)


@pytest.mark.parametrize(
    ("stage", "message"), [("motion_vae", "stage motion_vae"), ("base", "names no tokenizer")]
)
def test_a_run_that_makes_no_videos_is_refused(tmp_path, stage, message):
    (tmp_path / "checkpoints").mkdir()
    settings = config.to_dict(TrainConfig(stage=stage))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for load in (bundle.load_bundle_tokenizer, bundle.load_bundle):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)


def test_a_run_that_names_no_weights_is_refused():
    run = TrainConfig(model=config.toy())
    with pytest.raises(CheckpointError, match=r"config\.weights\.\w+: is needed"):
        run_networks.frozen_networks(run, run.model)


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


def test_no_file_that_is_read_is_overwritten(tmp_path):
    request, latents = write_request(tmp_path), tmp_path / "latents.npz"
    latents.touch()
    (tmp_path / "linked.png").symlink_to("kite.png")
    for name in ("kite", "linked"):
        settings = options(
            tmp_path,
            request,
            output=tmp_path / f"{name}.mp4",
            init_latents=latents,
            save_latents=latents,
        )
        with pytest.raises(sampling.SamplingError) as error:
            sampling.prepare(settings)
        assert error.value.problems == [
            f"--output: {tmp_path / name}.png would be overwritten, but it is read; "
            "choose another name",
            f"--save-latents: {latents} would be overwritten, but it is read; choose another name",
        ]


def test_a_path_file_that_is_read_is_not_overwritten(tmp_path):
    np.save(tmp_path / "a_tracks.npy", np.array([[[50, 180]], [[100, 190]], [[200, 190]]]))
    np.save(tmp_path / "a_visibility.npy", np.ones((3, 1), bool))
    data = {"prompt": "A man.", "entities": [{"word": "man", "trajectory": "a_tracks.npy"}]}
    (tmp_path / "r.json").write_text(json.dumps(data))
    for name in ("a_tracks.npy", "a_visibility.npy"):
        options = sampling.Options(TOY, tmp_path / "r.json", tmp_path / "o.mp4", steps=1)
        with pytest.raises(sampling.SamplingError, match=f"--save-frames: .*{name} would be over"):
            sampling.prepare(options._replace(save_frames=tmp_path / name))


@pytest.mark.parametrize(
    ("output", "told"),
    [(".", "names no file"), ("/", "names no file"), (f"{'a' * 300}.mp4", "name of 304 bytes")],
)
def test_an_output_that_can_be_no_file_is_refused_before_work(tmp_path, monkeypatch, output, told):
    monkeypatch.chdir(tmp_path)
    request = ROOT / "examples" / "request.json"
    with pytest.raises(sampling.SamplingError, match=told):
        sampling.prepare(sampling.Options(TOY, request, Path(output)))


def test_an_empty_option_is_no_folder(capsys):
    given = ["--checkpoint", str(TOY), "--request", "r.json", "--output", ""]
    with pytest.raises(SystemExit) as ended:
        sample_script.main(given)
    assert ended.value.code == 2 and "--output: is empty" in capsys.readouterr().err


def test_latents_to_start_from_that_are_a_picture_are_said_to_be_none(tmp_path):
    request = ROOT / "examples" / "request.json"
    options = sampling.Options(TOY, request, tmp_path / "o.mp4")
    picture = ROOT / "examples" / "man.png"
    with pytest.raises(sampling.SamplingError, match=r"is no \.npy or \.npz file"):
        sampling.prepare(options._replace(init_latents=picture))
