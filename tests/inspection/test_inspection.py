"""What an inspection shows is what the model does; what is missing is named; files are whole."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.support.parity import relative_error
from tests.support.random_conditions import masked, tiny_model
from tora2_jax import config
from tora2_jax.conditioning import from_arrays
from tora2_jax.inspection import command, measure, steps
from tora2_jax.inspection.diagnosis import diagnose
from tora2_jax.inspection.numbers import as_data
from tora2_jax.inspection.picture import draw_entity
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.models.frozen import FrozenNetworks
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.models.tora2 import Tora2
from tora2_jax.request import parse_request
from tora2_jax.sampling.command import SamplingError
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.text import load_tokenizer
from tora2_jax.types import Conditions, Inputs
from tora2_jax.weights.bundle import LoadedModel

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"
LONG = pytest.mark.long
PROMPT = "A man and a kite and a xylophone in a meadow."


class WithoutNetworks(Tora2Pipeline):
    """A pipeline whose frozen networks, which are tested elsewhere, see random things."""

    def conditions(self, inputs: Inputs) -> Conditions:
        model, generator = self.config, np.random.default_rng(0)

        def normal(*shape):
            return jnp.asarray(generator.standard_normal(shape), jnp.float32)

        lead = inputs.reference_mask.shape
        shared = set(Inputs._fields) & set(Conditions._fields)
        features = {name: getattr(inputs, name) for name in shared}
        if model.personalization is not None:
            prior, human = inputs.prior_mask, inputs.is_human[..., None]
            shapes = {
                "dino": ((9, model.dino.width), inputs.reference_mask),
                "face_tokens": ((4, model.face.widths[-1]), prior & human),
                "face_vector": ((model.face.embedding,), prior & human),
                "object_tokens": ((16, model.object.width), prior & ~human),
                "object_vector": ((model.object.width,), prior & ~human),
            }
            for name, (shape, mask) in shapes.items():
                features[name] = masked(normal(*lead, *shape), mask)
        if model.motion is not None:
            features["motion_latents"] = normal(*self.latent_shape(*inputs.flow_video.shape[:4]))
        words = masked(normal(*inputs.word_mask.shape, model.text.width), inputs.word_mask)
        text = normal(*inputs.token_ids.shape, model.text.width)
        return from_arrays(features | {"text": text, "words": words})


def tiny(**changes) -> config.ModelConfig:
    """Three blocks, of which 0 and 2 have a cross-attention; 32 x 32 pixels are 2 x 2 tokens."""
    model = tiny_model(cross_heads=2, cross_head_dim=4, every_k=2)
    model.transformer = config.TransformerConfig(
        num_layers=3,
        num_heads=2,
        head_dim=16,
        time_embed_dim=8,
        text_embed_dim=12,
        max_text_length=40,
        in_channels=8,
        out_channels=8,
        patch_size=4,
        sample_frames=9,
        sample_height=8,
        sample_width=8,
    )
    model.height = model.width = 32
    model.frames, model.motion.norm_groups = 9, 8
    for name, value in changes.items():
        setattr(model, name, value)
    return model


# What training starts at zero (see docs/decisions.md).
ZEROS = r".*(cross_attention\.output|to_map|(gamma|beta)_temporal)\.kernel"


def random_weights(make, untrained: bool = False) -> nnx.Module:
    """Every array random, without a compilation; variances and scales positive."""
    module, generator = nnx.eval_shape(make), np.random.default_rng(1)
    arrays = {}
    for path, spec in flat_variables(module).items():
        values = generator.standard_normal(spec.shape)
        if path.endswith("kernel"):
            values /= (np.prod(spec.shape[-4:-1]) or 1) ** 0.5
        elif path.endswith((".var", ".scale")):
            values = 0.5 + np.abs(values)
        arrays[path] = values * (not (untrained and re.match(ZEROS, path)))
    assign_variables(module, arrays)
    return module


@functools.cache
def abstract_networks() -> tuple:
    """What a pipeline must hold, without weights."""
    model = tiny()
    return nnx.eval_shape(
        lambda: (
            FrozenNetworks(model, ("vae",), rngs=nnx.Rngs(0)),
            T5Encoder(model.text, rngs=nnx.Rngs(0)),
        )
    )


def pipeline_of(model: config.ModelConfig, untrained: bool = False) -> WithoutNetworks:
    """Random weights; untrained ones have zeros where training starts at zero."""
    tora2 = random_weights(lambda: Tora2(model, rngs=nnx.Rngs(0)), untrained)
    networks, text = abstract_networks()
    tokenizer = load_tokenizer(TOY / "tokenizer")
    return WithoutNetworks(LoadedModel(model, tora2, text, networks, tokenizer))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With pictures of entities: a kite, and a person too small to have a head."""
    folder = tmp_path_factory.mktemp("requests")
    Image.new("RGBA", (32, 40), (200, 30, 30, 255)).save(folder / "kite.png")
    Image.new("RGBA", (20, 6), (30, 30, 200, 255)).save(folder / "far.png")
    return folder


def entities() -> dict[str, dict]:
    """One with everything, one not always there, one without a path, one without references."""
    return {
        "kite": {
            "word": "kite",
            "kind": "object",
            "images": ["kite.png", "kite.png"],
            "trajectory": [[20, 20], [200, 200]],
        },
        "man": {
            "word": "man",
            "kind": "human",
            "images": ["far.png"],
            "trajectory": [[240, 20], None, None],
        },
        "xylophone": {"word": "xylophone", "kind": "object", "images": ["kite.png"]},
        "meadow": {"word": "meadow", "kind": "object", "trajectory": [[30, 30]]},
    }


def inspect(pipeline, folder: Path, *words: str):
    request = {"prompt": PROMPT, "entities": [entities()[word] for word in words]}
    parsed = parse_request(request, folder, pipeline.config, pipeline.tokenizer)
    return measure.inspect(pipeline, parsed, "request.json", "checkpoint")


@pytest.fixture(scope="module")
def whole(folder):
    return inspect(pipeline_of(tiny()), folder, *entities())


def texts(inspection, index: int) -> dict[str, str]:
    """Level of every line of a diagnosis."""
    return {note.text: note.level for note in diagnose(inspection, inspection.entities[index])}


def has(lines: dict[str, str], level: str, *parts: str) -> bool:
    return any(
        found == level and all(part in text for part in parts) for text, found in lines.items()
    )


def test_every_cross_attention_is_seen(whole):
    kite, *_, meadow = whole.entities
    assert [view.timestep for view in kite.blocks] == [999, 899, 699, 499, 199]
    for blocks in kite.blocks:
        assert blocks.blocks == (0, 2)
        np.testing.assert_allclose(blocks.shares.sum(1), 1, atol=1e-5)
        assert (blocks.added > 0).all() and blocks.shares[:, 3].max() == 0
    assert meadow.effect is None  # it has no references


@LONG
def test_observing_changes_nothing(whole):
    pipeline = pipeline_of(tiny())
    conditions = pipeline.conditions(pipeline.prepare([whole.request])[1])
    _, bound = measure.look_at_entities(pipeline.model, conditions)
    latents = jax.random.normal(jax.random.key(0), pipeline.latent_shape(1, 9, 32, 32))
    given = (pipeline.model, latents, jnp.full(1, 500.0), bound)
    velocity, influence = steps.observed(*given, 4)
    assert influence.share.shape == influence.added.shape == (2, 1, 12, 4)
    plain = nnx.jit(lambda model, *given: model(*given))(*given)
    assert relative_error(velocity, plain) < 1e-6


def test_what_is_missing_is_named(whole):
    kite, man, xylophone, meadow = (texts(whole, index) for index in range(4))
    assert not has(kite, "problem")
    assert has(kite, "fine", "path visible in all 9 frames")
    assert has(man, "problem", "far.png", "no face found")
    assert has(man, "note", "not visible in frames", "masked")
    assert has(xylophone, "problem", "no path")
    assert has(xylophone, "note", "the binder reads the first 2")
    assert has(meadow, "problem", "no reference")
    assert has(meadow, "note", "stands still")
    assert np.isnan(whole.entities[2].binding.summary[1]).all()
    assert not whole.retrieval.takes_part[[2, 3]].any() and whole.retrieval.takes_part[:2].all()


def test_changes_are_ratios_of_norms(folder):
    """The share of one entity alone is the whole change of the motion map."""
    pipeline = pipeline_of(tiny())
    alone = inspect(pipeline, folder, "kite")
    inputs = pipeline.prepare([alone.request])[1]
    conditions = pipeline.conditions(inputs)
    (encoded, bound, *_), _ = measure.look_at_entities(pipeline.model, conditions)
    change = alone.entities[0].change
    assert change.map == pytest.approx(float(bound.metrics["delta_map"]), rel=1e-4)
    assert change.p == pytest.approx(float(bound.metrics["delta_p"]), rel=1e-4)
    spread = np.asarray(bound.motion_map - encoded.motion_map)[0]
    here = np.asarray(encoded.motion_map)[0] * alone.entities[0].path.splat[..., None]
    ratio = np.linalg.norm(spread) / np.linalg.norm(here)
    assert change.map_here == pytest.approx(ratio, rel=1e-3)


def test_an_untrained_model_says_that_it_is(folder, caplog):
    inspection = inspect(pipeline_of(tiny(), untrained=True), folder, "kite", "man")
    assert 'request.json: prompt: the tokenizer spells "xylophone"' in caplog.text
    assert inspection.zeros == (True, True, True)
    lines = texts(inspection, 0)
    assert has(lines, "problem", "contribution to the stream is 0: W_o is zero (untrained)")
    assert has(lines, "problem", "W_out is zero") and has(lines, "problem", "fusers'")
    assert not any(view.added.any() for view in inspection.entities[0].blocks)
    assert inspection.entities[0].change.map == 0


@pytest.mark.parametrize(
    ("changes", "words", "named"),
    [
        ({"personalization": None}, ("meadow",), "takes no references"),
        pytest.param({"motion": None}, ("xylophone",), "takes no trajectories", marks=LONG),
        pytest.param({"binding": "linear"}, ("kite",), "binding: linear", marks=LONG),
    ],
)
def test_models_without_a_part_say_so_and_are_drawn(folder, changes, words, named):
    model = tiny(**{name: part for name, part in changes.items() if part is None})
    if "binding" in changes:
        model.binding.variant = changes["binding"]
        model.binding.contrast_on = "none"  # as in the runs of Table 3
    inspection = inspect(pipeline_of(model), folder, *words)
    assert any(named in text for text in texts(inspection, 0))
    assert draw_entity(inspection, inspection.entities[0]).shape[1] > 600
    json.dumps(as_data(inspection), allow_nan=False)


def test_every_entity_is_drawn_and_its_numbers_are_json(whole, tmp_path):
    for entity in whole.entities:
        picture = draw_entity(whole, entity)
        assert picture.dtype == np.uint8 and 900 < picture.shape[1] < 1600
    data = json.loads(json.dumps(as_data(whole), allow_nan=False))
    kite = data["entities"][0]
    assert kite["cross_attention"][0]["blocks"] == [0, 2] and kite["references"][0]["prior"]
    assert data["entities"][2]["binding"]["attention_between_modalities"][1] == [None] * 3
    assert len(kite["binding"]["gate_p_mean"]) == 3


def test_a_word_behind_the_cut_is_told(whole):
    entity = whole.entities[0]
    cut = entity._replace(word_tokens=entity.word_tokens._replace(room=4, kept=()))
    lines = {note.text: note.level for note in diagnose(whole, cut)}
    assert has(lines, "problem", "word cut at 4 tokens")
    assert draw_entity(whole, cut).size


def test_references_without_pixels_are_told(whole):
    """After the pictures come references that are known by their features alone."""
    entity = whole.entities[0]
    stored = entity._replace(
        reference_mask=np.ones(4, bool), prior_mask=np.array([True, True, True, False])
    )
    lines = {note.text: note.level for note in diagnose(whole, stored)}
    assert has(lines, "note", "features of 2 more from files")
    assert (
        as_data(whole._replace(entities=(stored,)))["entities"][0]["references_from_features"] == 2
    )
    assert draw_entity(whole, stored).shape[0] > draw_entity(whole, entity).shape[0]


def test_an_entity_that_others_drown_is_told(whole):
    entity = whole.entities[0]
    shares = np.array([[0.05, 0.5, 0.45, 0], [0.01, 0.9, 0.09, 0]])
    drowned = entity._replace(blocks=tuple(view._replace(shares=shares) for view in entity.blocks))
    lines = {note.text: note.level for note in diagnose(whole, drowned)}
    assert has(lines, "problem", "drowned: it gets 3 % of the attention", "33 %")


def options(folder: Path, *names: str, **changes) -> command.Options:
    settings = {"checkpoint": TOY, "output": folder / "out"}
    return command.Options([folder / name for name in names], **(settings | changes))


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    (tmp_path / "a.json").write_text('{"prompt": "A man.", "height": 100, "entities": []}')
    (tmp_path / "b.json").write_text(
        '{"prompt": "A man.", "entities": [{"word": "dog", "images": ["no.png"]}]}'
    )
    (tmp_path / "out").touch()
    wrong = options(tmp_path, "a.json", "b.json", seed=-1, steps=0)
    with pytest.raises(SamplingError, match="nothing was written") as error:
        command.run(wrong)
    for part in ("--seed", "--steps", "--output", "a.json: height", "b.json: entities[0].word"):
        assert any(part in problem for problem in error.value.problems), part
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "out"]


def test_files_are_named_after_request_and_entity(whole, tmp_path, monkeypatch):
    for name in ("x/r.json", "y/r.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(
            '{"prompt": "A man.", "entities": [{"word": "man", "trajectory": [[9, 9]]}]}'
        )
    monkeypatch.setattr(Tora2Pipeline, "from_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(measure, "inspect", lambda *_, **__: whole)
    monkeypatch.setattr(command, "draw_entity", lambda *_: np.zeros((4, 4, 3), np.uint8))
    said = []
    written = command.run(options(tmp_path, "x/r.json", "y/r.json", json=True), said.append)
    words = ("0_kite", "1_man", "2_xylophone", "3_meadow")
    names = [f"{stem}_{word}.png" for stem in ("r", "r_2") for word in words]
    names.insert(4, "r.json")
    names.append("r_2.json")
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert any("path visible in all" in line for line in said)
    (tmp_path / "out" / "r_1_man.png").unlink()
    (tmp_path / "out" / "r_1_man.png").mkdir()
    with pytest.raises(SamplingError, match=r"only \S*r_0_kite\.png:"):
        command.run(options(tmp_path, "x/r.json", "y/r.json", json=True), said.append)


@LONG
def test_the_script_inspects_the_example(tmp_path):
    example = TOY.parent.parent / "examples" / "request.json"
    written = command.run(options(tmp_path)._replace(requests=[example]), lambda line: None)
    assert [path.name for path in written] == ["request_0_man.png", "request_1_kite.png"]
