"""Feature files instead of reference images: written, read, refused, and the same in the end."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from scripts import encode_references as script
from tests.support.random_conditions import tiny_model
from tora2_jax import conditioning
from tora2_jax.conditioning import feature_writer
from tora2_jax.conditioning.stored_features import with_stored
from tora2_jax.config import PersonalizationConfig, StoredPriorConfig, toy
from tora2_jax.models.encoders.prior import PriorSizes, prior_configs, prior_sizes
from tora2_jax.models.frozen import FrozenNetworks, needed_networks
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.models.personalization import AppearanceExtractor
from tora2_jax.references.feature_files import (
    FeatureFileError,
    ReferenceFeatures,
    load_features,
    save_features,
)
from tora2_jax.request import Request, RequestError, load_request, parse_request, validate
from tora2_jax.weights import bundle

TOY = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"
SIZE = {"height": 32, "width": 32, "frames": 9}
PROMPT = "A man and a kite."


def random_features(model, kind="object", seed=0, **changes):
    """Features of the shapes that a model reads."""
    generator = np.random.default_rng(seed)
    sizes = prior_sizes(prior_configs(model)["face" if kind == "human" else "object"])
    shapes = {
        "dino": ((model.dino.image_size // model.dino.patch_size) ** 2, model.dino.width),
        "prior_tokens": (sizes.tokens, sizes.width),
        "prior_vector": (sizes.vector_width,),
    }
    arrays = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return ReferenceFeatures(**{**arrays, "kind": kind, **changes})


def same(a, b):
    """Whether features are equal, bit for bit."""
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_hold_what_was_written(suffix, tmp_path):
    whole = random_features(toy())
    for features in (whole, ReferenceFeatures(whole.dino), whole._replace(kind=None)):
        save_features(tmp_path / f"a{suffix}", features)
        assert same(load_features(tmp_path / f"a{suffix}"), features)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_other_precisions_are_read(tmp_path):
    dino = np.float16([[0.1, 2.0]])
    np.savez_compressed(tmp_path / "a.npz", dino=dino)
    assert same(load_features(tmp_path / "a.npz"), ReferenceFeatures(dino.astype(np.float32)))


def write_images(folder):
    """A man with a head, a man too small for one, and a kite, on transparent ground."""
    generator = np.random.default_rng(0)
    for name, height in (("man", 40), ("far", 6), ("kite", 30)):
        pixels = np.zeros((48, 40, 4), np.uint8)
        pixels[4 : 4 + height, 8:30] = generator.integers(0, 255, (height, 22, 4))
        pixels[4 : 4 + height, 8:30, 3] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")


def test_features_of_a_request_stand_for_its_images(tmp_path, capsys):
    """The man's second image stays an image; all others become files."""
    write_images(tmp_path)
    man = {"word": "man", "kind": "human", "images": ["far.png", "man.png"]}
    kite = {"word": "kite", "kind": "object", "images": ["kite.png"], "trajectory": [[9, 9]]}
    data = {"prompt": PROMPT, "entities": [man, kite], **SIZE}
    (tmp_path / "request.json").write_text(json.dumps(data))
    arguments = ["--checkpoint", TOY, "--request", tmp_path / "request.json", "--output", tmp_path]
    assert script.main(list(map(str, arguments))) == 0
    files = ["entity0_reference0.npz", "entity0_reference1.npz", "entity1_reference0.npz"]
    assert f'"word": "man", "features": {json.dumps(files[:2])}' in capsys.readouterr().out
    written = [load_features(tmp_path / name) for name in files]
    assert [features.kind for features in written] == ["human", "human", "object"]
    assert [features.prior_tokens is not None for features in written] == [False, True, True]

    model, networks = bundle.load_reference_encoders(TOY)
    assert networks.vae is None
    tokenizer = bundle.load_bundle_tokenizer(TOY)
    man |= {"images": ["far.png"], "features": files[1:2], "kind": "human"}
    kite |= {"images": [], "features": files[2:], "kind": "auto"}
    mixed = parse_request({**data, "entities": [man, kite]}, tmp_path, model, tokenizer)
    assert mixed.entities[1].kind == "object"  # its file says so
    again = feature_writer.encode_request(networks, model, tokenizer, mixed)
    for a, b in zip(written, [*again[0], *again[1]], strict=True):
        assert same(a, b)
    images = load_request(tmp_path / "request.json", model, tokenizer)
    plain, stored = (
        conditioning.request_inputs(model, tokenizer, request) for request in (images, mixed)
    )
    for name in ("is_human", "reference_mask", "prior_mask"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(stored, name), name)
    assert plain.stored is None and stored.stored.given.sum() == 2
    both = conditioning.batch_inputs([plain, stored])
    assert both.stored.given.sum(axis=(1, 2)).tolist() == [0, 2]
    assert conditioning.without_references(both).stored.given.sum() == 0


def problems_of(folder, entity, model=None):
    with pytest.raises(RequestError) as error:
        parse_request({"prompt": PROMPT, "entities": [entity], **SIZE}, folder, model)
    return error.value.problems


def test_files_that_cannot_be_used_are_told_at_once(tmp_path):
    whole = random_features(toy())
    np.savez(tmp_path / "objects.npz", dino=np.array([{}]))
    (tmp_path / "empty.npz").write_bytes(b"")
    save_features(tmp_path / "cut.safetensors", whole)
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-40])
    (tmp_path / "a.npy").write_bytes(b"")
    np.savez(
        tmp_path / "content.npz",
        dyno=whole.dino, prior_tokens=whole.dino[0], kind=np.array("cat"),
    )  # fmt: skip
    spoiled = whole.dino.copy()
    spoiled[3, 2] = np.nan
    np.savez(tmp_path / "values.npz", dino=spoiled, prior_vector=np.arange(3))
    files = ["objects.npz", "empty.npz", "cut.safetensors", "a.npy", "content.npz", "values.npz"]
    problems = problems_of(tmp_path, {"word": "kite", "features": [*files, "none.npz", 3]})
    for index, told in (
        (0, "objects.npz is damaged, or holds more than numbers (Object arrays cannot be loaded"),
        (1, "empty.npz is damaged"),
        (2, "cut.safetensors is damaged"),
        (3, "a.npy is neither .npz nor .safetensors"),
        (4, "content.npz: dino is missing"),
        (4, "content.npz: has only one of prior_tokens and prior_vector"),
        (4, 'content.npz: kind must be "human" or "object", not \'cat\''),
        (4, "content.npz: dyno is not known; it may hold dino, prior_tokens"),
        (4, "content.npz: prior_tokens has shape [64]; 2 axes are needed"),
        (5, "values.npz: dino holds numbers that are not finite"),
        (5, "values.npz: prior_vector holds values of type int64"),
        (6, 'there is no file "none.npz"'),
        (7, "must be the path of a file, not 3"),
    ):
        start = f"entities[0].features[{index}]: {told}"
        assert any(problem.startswith(start) for problem in problems), (start, problems)
    told = problems_of(tmp_path, {"word": "kite", "features": "a.npz"})
    assert 'entities[0].features: must be a list of feature files, not "a.npz"' in told


def test_features_must_fit_the_model_and_the_entity(tmp_path):
    model = toy()
    save_features(tmp_path / "kite.npz", random_features(model))
    save_features(tmp_path / "man.npz", random_features(model, "human"))
    save_features(tmp_path / "open.npz", random_features(model, kind=None))
    model.dino.width = 32
    assert problems_of(tmp_path, {"word": "kite", "features": ["kite.npz"]}, model) == [
        "entities[0].features[0]: kite.npz dino has shape [16, 64], but toy reads [16, 32] for an "
        "entity of kind object"
    ]
    model = toy()
    human = {"word": "man", "kind": "human", "features": ["man.npz", "kite.npz"]}
    told = problems_of(tmp_path, human, model)
    assert told[0].startswith(
        "entities[0].features[1]: kite.npz has the prior of an entity of kind"
    )
    assert any("prior_vector has shape [256], but toy reads [64]" in problem for problem in told)
    human["features"].append("open.npz")
    assert "0 images and 3 files are too many" in problems_of(tmp_path, human, model)[0]
    unclear = {"word": "man", "features": ["open.npz"]}
    assert "for an entity of kind human" in problems_of(tmp_path, unclear, model)[0]
    several = {"word": "man", "features": ["man.npz", "kite.npz"]}
    assert "are of entities of several kinds" in problems_of(tmp_path, several)[0]
    model.personalization = None
    own = {"word": "kite", "features": ["kite.npz"]}
    told = "entities[0].features: toy takes no reference images"
    assert told in problems_of(tmp_path, own, model)
    nothing = problems_of(tmp_path, {"word": "kite", "features": []})
    assert "nor features; give at least one" in nothing[0]


def test_hand_made_requests_are_checked_too(tmp_path):
    save_features(tmp_path / "man.npz", random_features(toy(), "human"))
    own = {"word": "man", "features": ["man.npz"]}
    request = parse_request({"prompt": PROMPT, "entities": [own], **SIZE}, tmp_path, toy())
    entity = request.entities[0]
    for change in ({"kind": "object"}, {"features": (tmp_path / "no.npz",)}):
        wrong: Request = request._replace(entities=(entity._replace(**change),))
        with pytest.raises(RequestError):
            validate(wrong, toy())
    validate(request, toy())
    validate(request._replace(entities=(entity._replace(kind="auto"),)), toy())  # by its word
    with pytest.raises(FeatureFileError):
        load_features(tmp_path / "no.npz")


def test_a_prior_that_only_files_bring(tmp_path):
    """One vector of another width for objects, and no object encoder at all."""
    model = tiny_model()
    model.stored_object = StoredPriorConfig(tokens=1, width=5, vector_width=6)
    assert prior_sizes(prior_configs(model)["object"]) == PriorSizes(1, 5, 6)
    assert needed_networks(model) == ("vae", "motion_vae", "dino", "face")
    extractor = nnx.eval_shape(lambda: AppearanceExtractor(model, rngs=nnx.Rngs(0)))
    assert flat_variables(extractor)["object.positions"].shape == (1, 16)

    write_images(tmp_path)
    save_features(tmp_path / "kite.npz", random_features(model))
    kite = {"word": "kite", "kind": "object", "images": ["kite.png"], "features": ["kite.npz"]}
    request = parse_request({"prompt": PROMPT, "entities": [kite], **SIZE}, tmp_path, model)
    inputs = conditioning.request_inputs(model, bundle.load_bundle_tokenizer(TOY), request)
    assert inputs.reference_mask[0].tolist() == [True, True]
    assert inputs.prior_mask[0].tolist() == [False, True]  # no network looks at the image
    inputs = conditioning.batch_inputs([inputs])
    networks = nnx.eval_shape(lambda: FrozenNetworks(model, ("object",), rngs=nnx.Rngs(0)))
    assert networks.object is None
    found = conditioning.encode_references(networks, model, inputs)
    expected = load_features(tmp_path / "kite.npz")
    np.testing.assert_array_equal(found.object.tokens[0, 0, 1], expected.prior_tokens)
    np.testing.assert_array_equal(found.object.vector[0, 0, 1], expected.prior_vector)
    assert not found.object.tokens[0, 0, 0].any() and found.dino is None


def test_without_a_face_network_no_face_is_sought(tmp_path):
    model = tiny_model()
    model.stored_face, model.face_detector = StoredPriorConfig(), "insightface"
    write_images(tmp_path)
    man = {"word": "man", "kind": "human", "images": ["man.png"]}
    request = parse_request({"prompt": PROMPT, "entities": [man], **SIZE}, tmp_path, model)
    inputs = conditioning.request_inputs(model, bundle.load_bundle_tokenizer(TOY), request)
    assert inputs.reference_mask[0].tolist() == [True, False] and not inputs.prior_mask.any()


def test_humans_have_the_prior_of_objects_where_a_variant_says_so(tmp_path):
    model = toy()
    model.personalization = PersonalizationConfig(variant="dino_reid", width=8)
    save_features(tmp_path / "man.npz", random_features(model)._replace(kind="human"))
    man = {"word": "man", "features": ["man.npz"]}
    request = parse_request({"prompt": PROMPT, "entities": [man], **SIZE}, tmp_path, model)
    inputs = conditioning.request_inputs(model, bundle.load_bundle_tokenizer(TOY), request)
    stored = inputs.stored.features
    assert stored.object.vector[0, 0].any() and not stored.face.vector.any()
    inputs = conditioning.batch_inputs([inputs])
    stored = inputs.stored.features
    zeros = jax.tree.map(np.zeros_like, stored)
    found = jax.tree.map(np.asarray, with_stored(zeros, model, inputs))
    np.testing.assert_array_equal(found.object.tokens, stored.object.tokens)
    assert not found.face.tokens.any()
    save_features(tmp_path / "man.npz", ReferenceFeatures(random_features(model).dino))
    told = problems_of(tmp_path, {**man, "kind": "human"}, model)
    assert "man.npz has no prior, but this variant" in told[0]
