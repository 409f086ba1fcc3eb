"""The bench: what it measures, what its networks look at, and that its stages can learn."""

import dataclasses
import json
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax.config import toy
from tora2_jax.config.train import TrainConfig
from tora2_jax.config.world import WorldConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.evaluation import gate, look, report, requests
from tora2_jax.evaluation import world as evaluate
from tora2_jax.evaluation.bench import measure
from tora2_jax.evaluation.bench.judge import CANDIDATES, candidates
from tora2_jax.evaluation.bench.localizer import truth
from tora2_jax.evaluation.bench.networks import (
    ABSENT,
    JUDGE_SIDE,
    NAMES,
    PRESENT,
    UNSURE,
    Judge,
    Localizer,
    cell_centers,
    crops_around,
    degrade,
    locate,
    peak_centers,
    white_square,
)
from tora2_jax.evaluation.own_looks import own_looks
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.sampling.pipeline import Sample
from tora2_jax.train.stages import localizer, recognition
from tora2_jax.train.stages.contrast import contrast, normalized
from tora2_jax.train.state import find_stage
from tora2_jax.types import PriorFeatures
from tora2_jax.weights.checkpoint import stored_names
from tora2_jax.world.clips import render_clip
from tora2_jax.world.model import toy_bold


def _config(stage: str) -> TrainConfig:
    world = WorldConfig(seed=5, frames=2, references=1)
    return TrainConfig(stage=stage, seed=5, model=toy(), world=world)


def _batch(config: TrainConfig, stage, size: int) -> dict[str, np.ndarray]:
    source = stage.source(config)
    examples = [source[index] for index in range(size)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@pytest.fixture(scope="module")
def bench() -> look.Bench:
    """Both networks with random weights, made without compiling their initialization."""
    rng = np.random.default_rng(0)
    networks = nnx.eval_shape(lambda: (Localizer(rngs=nnx.Rngs(0)), Judge(rngs=nnx.Rngs(0))))
    for network in networks:
        shapes = flat_variables(network)
        assign_variables(
            network, {name: 0.1 * rng.normal(size=x.shape) for name, x in shapes.items()}
        )
    return look.Bench(*networks)


def test_trajectory_error_by_hand():
    path = np.zeros((2, 3, 2))
    centers = np.array([[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]], [[1.0, 0.0]] * 3])
    present = np.array([[True, False, True], [True] * 3])
    visible = np.array([[True, True, False], [False] * 3])
    error = measure.trajectory_error(centers, present, path, visible)
    np.testing.assert_allclose(error[0], (5.0 + 128.0 * 2**0.5) / 2)
    assert np.isnan(error[1])


def test_canvas_scales_each_axis():
    np.testing.assert_allclose(measure.to_canvas(np.array([[60.0, 48.0]]), 96, 120), [[128, 128]])


def test_own_reference_must_win_strictly():
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.0, 0.4, 0.5]])
    np.testing.assert_array_equal(measure.found_own(scores), [True, False, False])
    np.testing.assert_array_equal(measure.rank_of_own(scores), [0.0, 0.5, 2.0])


def test_standard_errors():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    plain = measure.mean_estimate(values)
    assert plain.error == pytest.approx(2.0 / 20, rel=0.1)
    doubled = measure.cluster_estimate(np.stack([values, values], 1))
    assert doubled.mean == pytest.approx(plain.mean)
    assert doubled.error == pytest.approx(plain.error, rel=0.1), "members are not independent"
    holes = np.where(np.arange(400) % 2 == 0, np.nan, values)
    assert measure.mean_estimate(holes).count == 200
    uneven = measure.cluster_estimate(np.array([[1.0, 2.0], [6.0, np.nan], [np.nan, np.nan]]))
    assert (uneven.mean, uneven.count) == (3.0, 3)


def test_peak_center_is_exact_between_cells():
    places = np.asarray(cell_centers(24, 24))
    wanted = np.array([[21.3, 55.9], [12.0, 80.0]])
    distance = ((places[:, :, None] - wanted) ** 2).sum(-1)
    found = peak_centers(jnp.asarray(-distance / (2 * localizer.TARGET_SIGMA**2))[None])
    np.testing.assert_allclose(found[0], wanted, atol=0.3)


def test_crop_is_centered_on_the_point():
    frame = np.zeros((1, 96, 80, 3), np.float32)
    frame[0, 29:31, 49:51] = 1.0  # its middle is at (50, 30)
    crop = np.asarray(crops_around(jnp.asarray(frame), jnp.array([[50.0, 30.0]])))[0, ..., 0]
    half = JUDGE_SIDE // 2
    np.testing.assert_allclose(crop, crop[::-1, ::-1], atol=1e-5)
    assert crop[half - 1 : half + 1, half - 1 : half + 1].min() > 0.9
    outside = crops_around(jnp.asarray(frame), jnp.array([[-100.0, 30.0]]))
    np.testing.assert_allclose(outside, 0.5)


def test_reference_on_white_square():
    image = np.zeros((60, 90, 4), np.uint8)
    image[10:30, 40:80] = (255, 0, 0, 255)
    square = white_square(image)
    assert square.shape == (JUDGE_SIDE, JUDGE_SIDE, 3)
    np.testing.assert_allclose(square[JUDGE_SIDE // 2, JUDGE_SIDE // 2], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(square[:10], 1.0)
    np.testing.assert_allclose(white_square(np.zeros((4, 4, 4), np.uint8)), 1.0)


def test_degraded_frames_stay_images():
    images = jnp.asarray(np.random.default_rng(0).random((6, 24, 24, 3), np.float32))
    faulty = degrade(images, jax.random.key(0))
    assert faulty.shape == images.shape and faulty.min() >= 0 and faulty.max() <= 1
    assert not np.allclose(faulty, images)


def test_truth_agrees_with_the_record():
    record = render_clip(WorldConfig(seed=3, frames=9), 4)
    centers, state = truth(record)
    shown = [NAMES.index(entity.word) for entity in record.entities]
    for column, entity in zip(shown, record.entities, strict=True):
        np.testing.assert_array_equal(state[:, column] == PRESENT, entity.visible)
        np.testing.assert_array_equal(centers[:, column], entity.track)
        hidden = ~entity.visible
        seen = entity.mask.any((1, 2))
        np.testing.assert_array_equal(state[hidden, column] == UNSURE, seen[hidden])
    assert (np.delete(state, shown, axis=1) == ABSENT).all()


def test_unknown_word_is_named(bench):
    with pytest.raises(ValueError, match="dragon"):
        locate(bench.localizer, np.zeros((1, 96, 96, 3), np.uint8), ["dragon"])


def test_networks_are_small(bench):
    for network in bench:
        assert sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param))) < 300_000


@pytest.mark.parametrize("stage", ["face", "object", "judge", "localizer"])
def test_examples_are_pure_functions_of_the_index(stage):
    config = _config(stage)
    module = find_stage(config)
    first, again = module.source(config)[3], module.source(config)[3]
    other = module.source(dataclasses.replace(config, seed=6))[3]
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    if stage != "localizer":  # its examples depend on the seed of the world alone
        assert not jax.tree.all(jax.tree.map(np.array_equal, first, other))


@pytest.mark.parametrize("stage", ["face", "object", "dino", "judge", "localizer"])
def test_stage_has_a_scalar_loss_and_exports_its_network(stage):
    config = _config(stage)
    module = find_stage(config)
    batch = _batch(config, module, 1 if stage in ("object", "dino") else 2)
    batch = jax.tree.map(jnp.asarray, batch)
    model = nnx.eval_shape(lambda: module.build(config, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    value, metrics = jax.eval_shape(
        lambda state, key: module.loss(config, nnx.merge(graph, state), batch, key),
        state,
        jax.random.key(0),
    )
    assert {leaf.shape for leaf in jax.tree.leaves((value, metrics))} == {()}
    exported = {}
    for regex in module.components.values():
        exported |= stored_names(flat_variables(model), regex)
    inner = model if stage in ("judge", "localizer") else model.encoder
    assert exported.keys() == flat_variables(inner).keys()


def test_angular_loss_has_a_margin():
    count = recognition.FACE_IDENTITIES
    directions = np.random.default_rng(0).normal(size=(64, count)).astype(np.float32)
    model = Mock(
        spec=recognition.Recognition,
        describe=lambda images, train: PriorFeatures(tokens=None, vector=images),
        drawing_loss=lambda tokens, images: jnp.zeros(()),
        head=SimpleNamespace(kernel=jnp.asarray(directions)),
    )
    batch = {
        "image": jnp.asarray(directions[:, :4].T),
        "identity": jnp.arange(4),
        "usable": jnp.array([True, True, True, False]),
    }
    right, metrics = recognition._angular_loss(model, batch)
    wrong, _ = recognition._angular_loss(model, batch | {"identity": jnp.arange(4) + 4})
    assert metrics["right"] == 1.0 and right < 0.1 < 10.0 < wrong
    turned = np.cos(recognition.ANGLE_MARGIN)
    vectors = normalized(jnp.asarray(directions.T))
    logits = recognition.ANGLE_SCALE * (vectors[:3] @ vectors.T)
    logits = logits.at[jnp.arange(3), jnp.arange(3)].set(recognition.ANGLE_SCALE * turned)
    wanted = -jax.nn.log_softmax(logits)[jnp.arange(3), jnp.arange(3)].mean()
    np.testing.assert_allclose(right, wanted, rtol=0.05)


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="voice"):
        recognition.build(_config("voice"), nnx.Rngs(0))


def test_contrast_prefers_the_right_pairs():
    vectors = normalized(jnp.asarray(np.random.default_rng(0).normal(size=(8, 16))))
    word, usable = jnp.arange(8) // 4, jnp.arange(8) < 7
    good, right = contrast(vectors, vectors, word, usable)
    bad, _ = contrast(vectors, vectors[::-1], word, usable)
    assert right == 1.0 and good < bad
    broken = vectors.at[7].set(100.0)
    masked, _ = contrast(vectors, broken, word, usable)
    np.testing.assert_allclose(masked, good, rtol=1e-5)


def test_judge_candidates_start_with_the_own_reference():
    record = render_clip(WorldConfig(seed=3, frames=1, references=1), 1)
    entity = record.entities[0]
    options = candidates((1, 2), entity.word, entity.images[0])
    assert options.shape == (CANDIDATES, JUDGE_SIDE, JUDGE_SIDE, 3)
    np.testing.assert_array_equal(options[0], white_square(entity.images[0]))
    np.testing.assert_array_equal(options, candidates((1, 2), entity.word, entity.images[0]))
    assert all(not np.allclose(options[0], other) for other in options[1:])


def test_held_out_requests_have_two_entities_with_paths():
    records = requests.world_requests(dataclasses.replace(toy(), frames=5), 3, seed=0)
    assert len(records) == 3
    for record in records:
        assert len(record.entities) == 2
        assert all(len(e.images) == 1 and e.visible.any() for e in record.entities)
        assert all(e.has_trajectory for e in record.entities)


class _Echo:
    """A stand-in for a pipeline that remembers its noise and what it was asked for."""

    def __init__(self):
        self.config = dataclasses.replace(toy(), frames=5)
        self.tokenizer = None
        self.calls = []

    def generate_batch(self, inputs, *, seeds, settings):
        self.calls.append((inputs, tuple(seeds)))
        noise = [np.random.default_rng(seed).random((5, 96, 96, 3)) for seed in seeds]
        return Sample(np.stack(noise).astype(np.float32), np.zeros(0))


def test_world_bench_uses_one_noise_for_all_conditions(bench, monkeypatch):
    seen = []

    def inputs(model, tokenizer, records):
        seen.append([record.entities[0].track for record in records])
        return "asked"

    monkeypatch.setattr(evaluate, "inputs_from_records", inputs)
    plain = ("full", "exchanged_paths", "exchanged_references")
    changes = {name: str for name in plain}
    changes |= {"without_paths": str.upper, "without_references": str.title}
    monkeypatch.setattr(evaluate, "CONDITIONS", changes)
    pipeline, kept = _Echo(), []
    settings = evaluate.Settings(requests=3, batch_size=2, steps=1)
    measured = evaluate.world(pipeline, bench, settings, lambda *call: kept.append(call[:2]))
    assert sorted({asked for asked, _ in pipeline.calls}) == ["ASKED", "Asked", "asked"]
    assert {seeds for _, seeds in pipeline.calls} == {(0, 1), (2, 2)}
    assert len(kept) == 15 and len(set(kept)) == 15
    assert measured["gains"]["paths"]["mean"] == pytest.approx(0.0), "same noise, same video"
    assert measured["conditions"]["full"]["own_error"]["count"] == 6
    told = report.table(measured)
    assert "without_references" in told and "places exchanged with the paths" in told
    json.dumps(measured)


def test_exchanged_paths_and_references():
    (record,) = requests.world_requests(dataclasses.replace(toy(), frames=5), 1, seed=0)
    paths = requests.asked(record, "exchanged_paths", 0, "patterned")
    first, second = record.entities
    np.testing.assert_array_equal(paths.entities[0].track, second.track)
    np.testing.assert_array_equal(paths.entities[1].visible, first.visible)
    assert paths.entities[0].word == first.word and paths.entities[0].images is first.images
    looks = requests.asked(record, "exchanged_references", 0, "patterned")
    for new, old in zip(looks.entities, record.entities, strict=True):
        assert new.word == old.word and new.track is old.track
        assert not np.array_equal(new.images[0], old.images[0])
    assert requests.asked(record, "full", 0, "patterned") is record


def _seen(**values):
    fields = dict.fromkeys(look.Seen._fields, np.zeros(2))
    return look.Seen(**{**fields, **{name: np.array(value) for name, value in values.items()}})


def test_goals_are_those_of_hand_made_numbers():
    full = [
        _seen(own_error=[10, 20], other_error=[90, 110], distance=[4, 6], found=[1, 0.9]),
        _seen(own_error=[30, 20], other_error=[100, 100], distance=[np.nan, 8], found=[0.5, 1]),
    ]
    paths = [
        _seen(own_error=[1, 1], other_error=[9, 9]),
        _seen(own_error=[1, 9], other_error=[9, 1]),
    ]
    seen = {
        "full": full,
        "without_paths": [_seen(own_error=[100, 60]), _seen(own_error=[60, 100])],
        "without_references": [_seen(), _seen()],
        "exchanged_paths": paths,
        "exchanged_references": [_seen(preferred=[1, 1]), _seen(preferred=[1, 0])],
    }
    goals = [goal["measured"] for goal in report.report(seen, {})["goals"]]
    assert goals == pytest.approx([85, 6, 20, 25, 20, 0, 50, 75])
    met = [goal["met"] for goal in report.report(seen, {})["goals"]]
    assert met == [False, True, True, True, True, False, False, False]


def test_two_of_one_word_are_told_apart_by_their_pixels():
    model = toy_bold()
    records = requests.world_requests(model, 4, seed=0, one_word=True)
    for record in records:
        first, second = record.entities
        assert first.word == second.word and first.span != second.span
        np.testing.assert_array_equal(own_looks(record, record.video), [1, 1])
        nothing = np.broadcast_to(
            np.median(record.video.reshape(-1, 3), axis=0), record.video.shape
        )
        np.testing.assert_array_equal(own_looks(record, nothing.astype(np.uint8)), [0, 0])


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="requests, steps"):
        evaluate.Settings(requests=0, steps=0)


def test_all_missing_bench_files_are_named(tmp_path, bench, monkeypatch):
    monkeypatch.setattr(look, "Localizer", lambda rngs: bench.localizer)
    monkeypatch.setattr(look, "Judge", lambda rngs: bench.judge)
    with pytest.raises(CheckpointError, match=r"(?s)one\.safetensors.*two\.safetensors"):
        look.load_bench(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_gate_looks_at_videos_of_the_vae(bench, monkeypatch):
    model = dataclasses.replace(toy(), frames=9)
    vae = nnx.eval_shape(lambda: CausalVAE(model.vae, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(vae)
    records = requests.world_requests(model, 2, seed=1)
    shape = jax.eval_shape(
        lambda state, video: gate._through(nnx.merge(graph, state), video),
        state,
        records[0].video,
    )
    assert shape.shape == records[0].video.shape and shape.dtype == np.uint8
    monkeypatch.setattr(gate, "_through", lambda _, video: np.zeros_like(video))
    result = gate.gate(bench, vae, records)
    assert result.identified.count == 4 and result.pixels.count == 2
    assert not result.passed, "black videos show nothing"
