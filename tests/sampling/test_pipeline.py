"""Requests in, videos out: batches, negative prompts, the checkpoint's own scheduler."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support.parity import PIPELINE_TOLERANCE, relative_error
from tora2_jax import Tora2Pipeline, conditioning
from tora2_jax.config import toy
from tora2_jax.media.video_reading import read_video
from tora2_jax.models.vae import tiling
from tora2_jax.request import Request, RequestError, parse_request
from tora2_jax.sampling import command
from tora2_jax.sampling.pipeline import Sample, SampleSettings
from tora2_jax.sampling.result import SamplingStopped

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"
SIZE = {"height": 32, "width": 32, "frames": 9}


@pytest.fixture(scope="module")
def pipeline():
    return Tora2Pipeline.from_checkpoint(TOY)


@pytest.fixture(scope="module")
def requests(tmp_path_factory) -> list[Request]:
    """One with everything, and one of words alone."""
    folder = tmp_path_factory.mktemp("requests")
    Image.new("RGBA", (32, 40), (200, 30, 30, 255)).save(folder / "kite.png")
    kite = {"word": "kite", "kind": "object", "images": ["kite.png"]}
    full = {
        "prompt": "A man and a kite.",
        "negative_prompt": "A dog.",
        "entities": [
            {"word": "man", "trajectory": [[10, 10], [200, 200]]},
            kite | {"trajectory": [[50, 60]]},
        ],
    }
    return [parse_request(data | SIZE, folder) for data in (full, {"prompt": "A ball."})]


@pytest.fixture(autouse=True)
def decoded(monkeypatch) -> list:
    """What the VAE was asked for; decoding itself is tested with the VAE, and takes long."""
    asked = []

    def decode(vae, latents, memory, tiles, progress):
        asked.append((memory, latents.shape))
        return np.full((len(latents), 9, 32, 32, 3), 3, np.float32)

    monkeypatch.setattr(tiling, "decode_latents", decode)
    return asked


def test_a_row_of_a_batch_is_its_request_alone(pipeline, requests):
    settings = SampleSettings(steps=2)
    requests = [requests[0], requests[1]._replace(negative_prompt="Rain.")]
    together = pipeline.generate(requests, seed=5, settings=settings)
    assert together.video.shape == (2, 9, 32, 32, 3)
    for row, request in enumerate(requests):
        alone = pipeline.generate(request, seed=5 + row, settings=settings)
        assert relative_error(together.latents[row], alone.latents[0]) < PIPELINE_TOLERANCE
    assert relative_error(together.latents[0], together.latents[1]) > 0.1


def test_a_second_pipeline_compiles_nothing_that_an_equal_one_has(pipeline, requests):
    settings = SampleSettings(steps=1)
    first = pipeline.generate(requests[1], settings=settings)
    jitted = (pipeline.programs.encode, pipeline.programs.bind, pipeline.programs.step)
    compiled = [function._cache_size() for function in jitted]
    again = Tora2Pipeline.from_checkpoint(TOY)
    np.testing.assert_array_equal(
        again.generate(requests[1], settings=settings).latents, first.latents
    )
    assert again.programs is pipeline.programs
    assert [function._cache_size() for function in jitted] == compiled
    bfloat16 = Tora2Pipeline.from_checkpoint(TOY, jnp.bfloat16)
    assert bfloat16.programs is not pipeline.programs


def test_the_command_gives_every_request_its_own_seed(pipeline, requests, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    options = command.Options(tmp_path, files, tmp_path / "o.mp4", steps=2, seed=5)
    loaded, inputs = pipeline.prepare(requests)
    found = command.sample(options, command.Job(pipeline, loaded, inputs, None))
    expected = pipeline.generate(requests, seed=5, settings=options.settings())
    np.testing.assert_array_equal(found.latents, expected.latents)


def test_latents_are_decoded_within_the_memory_asked_for(pipeline, requests, decoded, monkeypatch):
    settings = SampleSettings(steps=2)
    for memory in ("whole", "tiled"):
        monkeypatch.setattr(pipeline, "vae_memory", memory)
        assert (pipeline.generate(requests[0], settings=settings).video == 1).all()
    assert decoded == [("whole", (1, 3, 8, 8, 8)), ("tiled", (1, 3, 8, 8, 8))]


def test_the_checkpoint_chooses_the_scheduler_unless_told(pipeline, requests, monkeypatch):
    def latents(scheduler=None):
        settings = SampleSettings(steps=2, scheduler=scheduler)
        return pipeline.generate(requests[0], settings=settings).latents

    dpm, ddim = latents("dpm"), latents("ddim")
    assert (latents() == dpm).all()
    monkeypatch.setattr(pipeline.config.diffusion, "scheduler", "ddim")
    assert (latents() == ddim).all() and (dpm != ddim).any()


def test_problems_of_a_batch_are_told_at_once(pipeline, requests, monkeypatch):
    monkeypatch.setattr(pipeline.config, "face_detector", "insightface")
    kite = requests[0].entities[1]._replace(kind="auto", faces=(1,))
    unclear = requests[0]._replace(entities=(kite,))
    with pytest.raises(RequestError) as error:
        pipeline.prepare([unclear, requests[1], unclear])
    problems = [text for text in error.value.problems if "face models: " not in text]
    assert [problem[:30] for problem in problems] == [
        "requests[0]: entities[0].kind:",
        "requests[2]: entities[0].kind:",
    ]


def test_what_was_decided_about_references_is_said(pipeline, requests, monkeypatch, caplog):
    monkeypatch.setattr(pipeline.config, "face_detector", "insightface")
    monkeypatch.setattr(pipeline, "detector", lambda picture: [])
    man, kite = requests[0].entities
    unclear = requests[0]._replace(entities=(man, kite._replace(kind="auto")))
    said = []
    _, inputs = pipeline.prepare([requests[1], unclear], said.append)
    assert said[-1] == 'requests[1]: entities[1] "kite": taken as object, for no face was found'
    assert not any("taken as" in note for note in said[:-1])
    assert inputs.is_human[1, :2].tolist() == [True, False]  # by the word man, and by no face
    assert inputs.object_images[1, 1].any()
    with caplog.at_level("INFO", "tora2_jax"):
        pipeline.prepare([unclear], names=["mine.json"])
    decided, made_for = (
        next(record for record in caplog.records if part in record.message)
        for part in ("taken as object", "may come out worse")
    )
    assert decided.levelname == "INFO" and made_for.levelname == "WARNING"
    assert decided.message.startswith("mine.json: ")


def one_hot(ids):
    """A text encoder that shows what it was given."""
    return jnp.asarray(np.eye(256, dtype=np.float32)[np.asarray(ids)])


@pytest.mark.parametrize("null_text", ["empty", "zeros"])
def test_a_negative_prompt_takes_the_place_of_the_null_text(pipeline, requests, null_text):
    model = toy()
    model.null_text, model.text.width = null_text, 256
    _, inputs = pipeline.prepare(requests)
    null = conditioning.null_text(one_hot, model, 2)
    with_one = conditioning.unconditional_text(one_hot, model, inputs)
    expected = pipeline.tokenizer.encode("A dog.")
    np.testing.assert_array_equal(with_one[0].argmax(-1)[: len(expected) + 1], [*expected, 1])
    np.testing.assert_array_equal(with_one[1], null[1])
    _, plain = pipeline.prepare([requests[1], requests[0]._replace(negative_prompt=None)])
    assert plain.negative_ids is None
    np.testing.assert_array_equal(conditioning.unconditional_text(one_hot, model, plain), null)
    np.testing.assert_array_equal(inputs.token_ids[0], plain.token_ids[1])


def test_a_callback_sees_each_step_and_may_stop(pipeline, requests, decoded):
    settings, seen = SampleSettings(steps=3), []
    expected = pipeline.generate(requests[0], settings=settings)

    def look(step):
        seen.append((step.step, step.total, np.asarray(step.clean)))

    sample = pipeline.generate(requests[0], settings=settings, callback=look)
    np.testing.assert_array_equal(sample.latents, expected.latents)
    assert [row[:2] for row in seen] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose(seen[-1][2], sample.latents, atol=1e-6)  # the last step adds nothing
    assert np.abs(seen[0][2] - sample.latents).max() > 1e-3

    def stop(step):
        frames = step.preview()
        assert frames.shape == (1, 9, 32, 32, 3) and frames.dtype == np.uint8
        return step.step < 2

    decoded.clear()
    with pytest.raises(SamplingStopped, match="stopped after step 2 of 3"):
        pipeline.generate(requests[0], settings=settings, callback=stop)
    assert len(decoded) == 2  # the previews alone


def test_a_sample_saves_shows_and_draws_its_videos(pipeline, requests, tmp_path):
    sample = pipeline.generate(requests, settings=SampleSettings(steps=1))
    paths = sample.save(tmp_path / "new" / "out.mp4")
    assert [path.name for path in paths] == ["out_0.mp4", "out_1.mp4"]
    assert all(read_video(path)[0].shape == (9, 32, 32, 3) for path in paths)
    (path,) = pipeline.generate(requests[0]._replace(fps=4), settings=SampleSettings(steps=1)).save(
        tmp_path / "one.mp4", overlay=True
    )
    frames, fps = read_video(path)
    assert fps == 4 and frames.shape[1] > 300  # enlarged, with the path on it
    assert np.ptp(sample.overlay(0)) > 0 == np.ptp(sample.frames(0))
    html = sample._repr_html_()
    assert html.count("<video") == 2 and "data:video/mp4;base64,AAAA" in html
    with pytest.raises(ValueError, match="plain inputs"):
        Sample(sample.video, sample.latents).overlay()
