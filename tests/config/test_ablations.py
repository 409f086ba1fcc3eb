"""The nine runs of the paper's tables: what each of them lacks, and that it trains and samples."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from convert.checkpoints.bundle import make_bundle
from convert.engine.rules import ConversionError
from tora2_jax.config import to_dict
from tora2_jax.config.train import differences
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.models.tora2 import COMPONENTS, Tora2
from tora2_jax.sampling import command
from tora2_jax.train import loop
from tora2_jax.train import state as train_state
from tora2_jax.train.stages import diffusion
from tora2_jax.weights import bundle, checkpoint

ROOT = Path(__file__).resolve().parents[2]
RUNS = {"full": "configs.toy"} | {
    path.stem: f"configs.ablations.{path.stem}"
    for path in sorted((ROOT / "configs" / "ablations").glob("[a-z]*.py"))
}
ALONE = ("dino", "dino_reid", "dino_decoupled", "dpe")  # Table 2: no motion
SIZE = {"height": 32, "width": 32, "frames": 9}


def config_of(name: str):
    return importlib.import_module(RUNS[name]).get_config()


@pytest.fixture(scope="module")
def parameters() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of what each run trains, by path."""

    def trained(config):
        model = nnx.eval_shape(lambda: diffusion.build(config, nnx.Rngs(0)))
        state = nnx.state(model, train_state.trainable_filter(config, diffusion.STAGE))
        return {path: value.shape for path, value in flat_variables(state).items()}

    return {name: trained(config_of(name)) for name in RUNS}


def without(shapes, pattern):
    kept = {path: shape for path, shape in shapes.items() if not re.match(pattern, path)}
    assert len(kept) < len(shapes)
    return kept


def linear(path, features, width):
    return {f"{path}.kernel": (features, width), f"{path}.bias": (width,)}


def test_parameter_sets_differ_exactly_as_stated(parameters):
    model = config_of("full").model
    width, words = model.personalization.width, model.binding.word_tokens
    face, objects = model.face, model.object
    full = parameters["full"]
    gated = without(full, r"tora2\.binder\.contrast_(motion|personalization)\.")
    merge = linear("tora2.binder.binding.merge", (2 + words) * width, width)
    none = without(gated, r"tora2\.binder\.")
    dpe = without(none, r"tora2\.(trajectory_extractor|transformer\.blocks\.fuser)\.")
    dino = without(dpe, r"tora2\.appearance\.(query_former|sources|face|object)")
    reid = dino | linear("tora2.appearance.object.map", objects.width, width)
    reid |= linear("tora2.appearance.object.vector", objects.width, width)
    decoupled = reid | linear("tora2.appearance.face.map", face.widths[-1], width)
    decoupled |= linear("tora2.appearance.face.vector", face.embedding, width)
    assert parameters == {
        "full": full,
        "order_pm": full,
        "binding_gated": gated,
        "binding_linear": without(gated, r"tora2\.binder\.binding\.") | merge,
        "binding_none": none,
        "dpe": dpe,
        "dino_decoupled": decoupled,
        "dino_reid": reid,
        "dino": dino,
    }


def test_runs_differ_in_nothing_else():
    bound = {"model.binding.contrast_on", "model.binding.variant"}
    off = {
        "order_pm": {"model.personalization.order"},
        "binding_gated": {"model.binding.contrast_on"},
    }
    off |= {"binding_linear": bound, "binding_none": bound}
    apart = bound | {"model.motion", "weights.motion"}
    off |= {name: apart | {"model.personalization.variant"} for name in ALONE}
    off["dpe"] = apart
    full = to_dict(config_of("full"))
    for name in RUNS.keys() - {"full"}:
        found = {line.split(":")[0] for line in differences(full, to_dict(config_of(name)))}
        names = {re.sub(r"^config\.|(?<=model\.motion)\..*", "", line) for line in found}
        assert names == off[name], name


def test_the_page_tells_how_many_parameters_each_run_trains(parameters):
    page = (ROOT / "docs" / "ablations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` .* ([\d,]+) \|$", page, re.MULTILINE)
    counts = {
        name: sum(int(np.prod(shape)) for shape in shapes.values())
        for name, shapes in parameters.items()
    }
    assert {name: int(count.replace(",", "")) for name, count in rows} == counts


def test_a_bundle_holds_what_was_trained_not_what_training_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the configs name what they start from relative to it
    config = config_of("dino")
    config.export = str(tmp_path / "trained")
    config.weights.personalization = "where it started"
    with pytest.raises(ConversionError) as error:
        make_bundle(config, tmp_path / "bundle")
    assert "personalization.safetensors is not there; train this config" in str(error.value)
    assert "where it started" not in str(error.value)

    model = flat_variables(nnx.eval_shape(lambda: Tora2(config.model, rngs=nnx.Rngs(0))))
    trained = {
        path: np.full(value.shape, 0.5, np.float32)
        for path, value in model.items()
        if re.match(COMPONENTS["personalization"], path)
    }
    path = tmp_path / "trained" / "personalization.safetensors"
    checkpoint.save_component(path, trained, {"model": to_dict(config.model)})
    make_bundle(config, tmp_path / "bundle")
    names = {entry.stem for entry in (tmp_path / "bundle").glob("*.safetensors")}
    assert names == {"transformer", "text", "personalization", "vae", "dino", "face", "object"}
    assert (tmp_path / "bundle" / path.name).read_bytes() == path.read_bytes()
    assert bundle.load_config(tmp_path / "bundle").motion is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the runs lie, with one cache for all; requests with and without paths."""
    place = tmp_path_factory.mktemp("ablations")
    Image.new("RGBA", (24, 32), (200, 30, 30, 255)).save(place / "picture.png")
    for name, path in (("full", [[40, 60], [200, 180]]), ("alone", None)):
        entities = [
            {"word": word, "kind": kind, "images": ["picture.png"], "trajectory": path}
            for word, kind in (("man", "human"), ("kite", "object"))
        ]
        request = {"prompt": "A man and a kite.", "entities": entities} | SIZE
        (place / f"{name}.json").write_text(json.dumps(request))
    return place


def small(name: str, folder: Path):
    """A run of few steps on small clips, reading and writing below `folder`."""
    config = config_of(name)
    config.steps, config.batch_size, config.data_size = 3, 2, 4
    config.mesh.data = 1
    config.model.frames = config.world.frames = SIZE["frames"]
    config.model.height = config.model.width = config.world.height = config.world.width = 32
    config.cache_dir, config.export = str(folder / "cache"), str(folder / name / "trained")
    return config


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_every_run_trains_and_samples(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)  # the configs name what they start from relative to it
    config, workdir = small(name, folder), folder / name
    loop.train(config, workdir)
    rows = [json.loads(row) for row in (workdir / "metrics/losses.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and np.isfinite([row["loss"] for row in rows]).all()
    assert len(list((folder / "cache").iterdir())) == 1  # all runs read the same encoded clips
    options = command.Options(
        checkpoint=workdir,
        request=folder / ("alone.json" if name in ALONE else "full.json"),
        output=workdir / "video.mp4",
        steps=2,
    )
    assert all(path.is_file() for path in command.run(options))


@pytest.mark.long
@pytest.mark.parametrize("name", ["full", "dino"])
def test_the_bundle_of_a_run_is_what_it_trained(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    make_bundle(small(name, folder), folder / "bundles" / name)
    settings, model, *_ = bundle.load_bundle(folder / "bundles" / name)
    expected, trained, *_ = bundle.load_bundle(folder / name)
    assert settings == expected
    found, wanted = flat_variables(model), flat_variables(trained)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():  # the files hold bfloat16
        np.testing.assert_allclose(found[path], value, rtol=0.01, atol=1e-6)
