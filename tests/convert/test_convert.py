"""`python -m convert`: CogVideoX folders in and out, bundles, and what is refused."""

import errno
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert.__main__ import main
from convert.checkpoints import export as export_room
from convert.checkpoints.export import export_folder
from convert.engine import folders
from convert.engine.folders import FolderError
from convert.engine.tensor_files import SourceError, TensorFiles
from scripts import full_size_check
from tests.support import cogvideox_twins as twins
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax import config as config_room
from tora2_jax import types
from tora2_jax.config import train
from tora2_jax.errors import TrainError
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.text import END_ID, load_tokenizer
from tora2_jax.train import state as train_state
from tora2_jax.weights import bundle, checkpoint
from tora2_jax.weights import folder as weight_folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The 5B twin in bfloat16, converted."""
    return twins.convert("cogvideox_5b", tmp_path_factory.mktemp("half"), dtype=torch.bfloat16)


def _tensors(folder):
    found = {}
    for part in ("transformer", "vae", "text_encoder"):
        files = TensorFiles(folder / part)
        found |= {f"{part}.{name}": tensor for name, tensor in files.read(files.specs)}
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "fast"),
    [("cogvideox_2b", torch.float16, True), ("cogvideox_1_5_5b_i2v", torch.float32, False)],
)
def test_round_trip_is_bit_exact_and_diffusers_loads_it(name, dtype, fast, tmp_path):
    import diffusers

    source, converted = twins.convert(name, tmp_path, dtype=dtype, fast_tokenizer=fast)
    returned = tmp_path / "returned"
    export_folder(converted, returned, shard_bytes=30_000)
    assert (returned / "transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    before, after = _tensors(source), _tensors(returned)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype, key
        np.testing.assert_array_equal(tensor.view(np.uint8), after[key].view(np.uint8), key)
    cls = getattr(diffusers, json.loads((returned / "model_index.json").read_text())["_class_name"])
    loaded, twin = cls.from_pretrained(returned, torch_dtype=dtype), twins.pipeline(name)
    assert type(loaded) is type(twin) and type(loaded.scheduler) is type(twin.scheduler)
    for part in ("transformer", "vae", "scheduler"):
        ours, theirs = (_settings(getattr(model, part)) for model in (loaded, twin))
        assert ours == theirs
    kept = load_tokenizer(converted / "tokenizer").encode(twins.PROMPTS[0])
    assert loaded.tokenizer(twins.PROMPTS[0]).input_ids == [*kept, END_ID]
    state = loaded.transformer.state_dict()
    for key, tensor in twin.transformer.state_dict().items():
        assert torch.equal(state[key], tensor.to(dtype)), key


def _settings(part):
    settings = {name: value for name, value in part.config.items() if name[0] != "_"}
    return json.loads(json.dumps(settings))


def test_tensors_keep_their_types_on_disk(half):
    _, converted = half
    for name in ("transformer", "vae", "text"):
        specs = checkpoint.component_specs(converted / name)
        assert {str(spec.dtype) for spec in specs.values()} == {"bfloat16"}


def test_half_precision_weights_at_rest_change_no_number(half):
    """float32 from bfloat16 weights: at rest as they came, or widened first, it is the same."""
    _, converted = half
    settings, model, text, networks, _ = bundle.load_bundle(converted)
    assert text.token_embedding.embedding[...].dtype == jnp.bfloat16
    generator = np.random.default_rng(0)
    latents = jnp.asarray(generator.standard_normal((1, 5, 6, 4, 4), np.float32))
    tokens = generator.integers(0, 200, (1, twins.TEXT_LENGTH))

    @nnx.jit
    def everything(model, text, networks):
        states = text(tokens)
        bound = types.BoundConditions(
            model.transformer.project_text(states), None, None, None, None
        )
        velocity = model(latents, jnp.array([500.0]), bound)
        return (
            states,
            velocity,
            networks.vae.decode(latents),
            networks.vae.encode_latents(jnp.zeros((1, 9, 16, 16, 3)) + latents[0, 0, 0, 0, 0]),
        )

    resting = everything(model, text, networks)
    widened = [nnx.clone(module) for module in (model, text, networks)]
    for module in widened:
        nnx.update(module, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(module)))
    for a, b in zip(resting, everything(*widened), strict=True):
        assert a.dtype == jnp.float32
        assert relative_error(a, b) < BLOCK_TOLERANCE
    assert settings.name == "source"


def test_training_starts_from_a_converted_folder(half):
    source, converted = half
    config = _train_config(converted)
    stage = train_state.find_stage(config)
    _, state = train_state.init_state(config, stage)
    tensor = _tensors(source)["transformer.transformer_blocks.1.ff.net.2.weight"]
    ours = state.frozen["tora2.transformer.blocks.feed_forward.project.kernel"][1]
    np.testing.assert_array_equal(ours, tensor.T.astype(np.float32))
    config.model.transformer.norm_eps = 1e-3
    with pytest.raises(TrainError, match=r"norm_eps is 0\.001; the weights want 1e-05"):
        train_state.init_state(config, stage)


def _train_config(converted):
    model = bundle.load_config(converted)
    model.motion = config_room.MotionConfig(width=8, norm_groups=4)
    weights = train.WeightsConfig(
        transformer=str(converted), text=str(converted), vae=str(converted)
    )
    return train.TrainConfig(
        stage="motion", model=model, weights=weights, tokenizer=str(converted / "tokenizer")
    )


def _bundle(folder, converted, change=""):
    path = folder / "wanted.py"
    path.write_text(
        "from tests.convert.test_convert import _train_config\nfrom pathlib import Path\n\n"
        f"def get_config():\n    config = _train_config(Path({str(converted)!r}))\n"
        f"    {change or 'pass'}\n    return config\n"
    )
    return ["bundle", "--config", str(path), "--dst", str(folder / "bundle")]


def test_bundle_is_self_contained(half, tmp_path):
    _, converted = half
    assert main(_bundle(tmp_path, converted)) == 0
    names = {entry.name for entry in (tmp_path / "bundle").iterdir()}
    assert names == {"config.json", "tokenizer", "transformer", "text", "vae"}
    ours, theirs = bundle.load_bundle(tmp_path / "bundle"), bundle.load_bundle(converted)
    assert ours[0] == theirs[0]  # without motion weights it is CogVideoX
    for a, b in zip(ours[1:4], theirs[1:4], strict=True):
        left, right = flat_variables(a), flat_variables(b)
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[path], right[path]) for path in left)


def test_bundle_names_everything_that_does_not_fit(half, tmp_path, capsys):
    _, converted = half
    change = "config.weights.text = None; config.weights.face = 'nowhere'; config.tokenizer = None"
    assert main(_bundle(tmp_path, converted, change)) == 2
    message = capsys.readouterr().err
    for field in ("config.weights.text", "config.weights.face", "config.tokenizer"):
        assert field in message
    change = "config.model.vae.norm_eps = 0.5; config.model.transformer.num_layers = 3"
    assert main(_bundle(tmp_path, converted, change)) == 2
    message = capsys.readouterr().err
    assert "model.vae.norm_eps" in message and "misshapen transformer.blocks" in message
    run = tmp_path / "config.json"
    for content in ("{", '{"setting": 1}', None):
        run.unlink(missing_ok=True) if content is None else run.write_text(content)
        assert main(["bundle", "--config", str(run), "--dst", str(tmp_path / "bundle")]) == 2
        assert f"--config: {run} is not the config of a run" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def _truncate(folder):
    file = next((folder / "vae").glob("*-00002-of-*"))
    file.write_bytes(file.read_bytes()[:-100])


def _web_page(folder):
    next((folder / "text_encoder").glob("*-00001-of-*")).write_text("<html>Log in</html>")


def _lose_shard(folder):
    next((folder / "transformer").glob("*-00001-of-*")).unlink()


def _pickle_code(folder):
    for file in (folder / "text_encoder").glob("*.safetensors*"):
        file.unlink()
    (folder / "text_encoder/pytorch_model.bin").write_bytes(
        pickle.dumps({"shared.weight": _Trap(folder / "trap")})
    )


def _pickle_unusable(folder):
    for file in (folder / "text_encoder").glob("*.safetensors*"):
        file.unlink()
    entries = {
        3: torch.ones(1),
        "tiny": torch.ones(2).to(torch.float8_e4m3fn),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "step": 5,
    }
    torch.save(entries, folder / "text_encoder/pytorch_model.bin")


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _change(part, **settings):
    def apply(folder):
        path = folder / part
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return apply


BAD_SOURCES = {
    "truncated": (_truncate, ["vae/diffusion_pytorch_model-00002", "not a whole safetensors"]),
    "web page": (_web_page, ["text_encoder/model-00001", "is a web page"]),
    "missing shard": (_lose_shard, ["transformer/diffusion_pytorch_model-00001", "is missing"]),
    "pickle with code": (_pickle_code, ["pytorch_model.bin", "was not run"]),
    "unusable pickle": (
        _pickle_unusable,
        [
            "3 is a key of type int",
            "'tiny' holds values of type float8_e4m3fn",
            "'sparse' is sparse",
            "'meta' is sparse, nested or without values",
            "'step' is of type int, no tensor",
        ],
    ),
    "no tokenizer": (
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        ["tokenizer: not in", "name a folder that has them with --base"],
    ),
    "no config": (lambda folder: (folder / "vae/config.json").unlink(), ["vae/config.json"]),
    "another model": (
        _change("transformer/config.json", _class_name="WanTransformer3DModel"),
        ["WanTransformer3DModel", "CogVideoX folder"],
    ),
    "another objective": (
        _change("scheduler/scheduler_config.json", prediction_type="epsilon"),
        ["prediction_type is 'epsilon'"],
    ),
    "wrong sizes": (
        _change("transformer/config.json", num_layers=3, time_embed_dim=16),
        ["missing: blocks.attention.query.kernel, layers 2", "misshapen: time_embedding"],
    ),
    "wrong value": (_change("vae/config.json", norm_num_groups="four"), ["norm_num_groups"]),
    "wrong groups": (_change("vae/config.json", norm_num_groups=7), ["norm_num_groups 7 must"]),
    "zero": (_change("vae/config.json", scaling_factor=0.0), ["scaling_factor cannot be 0.0"]),
    "wrong schedule": (
        _change("scheduler/scheduler_config.json", timestep_spacing="foo", beta_start=float("nan")),
        ["timestep_spacing cannot be 'foo'; it must be trailing", "beta_start cannot be nan"],
    ),
    "no share": (
        _change("scheduler/scheduler_config.json", beta_end=1.5, num_train_timesteps=1),
        ["beta_end is 1.5", "num_train_timesteps is 1"],
    ),
    "no list": (_change("text_encoder/config.json", architectures=5), ["architectures is 5"]),
    "unknown setting": (_change("vae/config.json", use_magic=True), ["use_magic is not known"]),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_refused_in_words(half, case, tmp_path, capsys):
    damage, expected = BAD_SOURCES[case]
    source = shutil.copytree(half[0], tmp_path / "source")
    damage(source)
    assert main(["cogvideox", "--src", str(source), "--dst", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in expected), message
    assert "Traceback" not in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]
    assert not (source / "trap").exists()


def test_older_pickles_are_read(tmp_path):
    tensors = {"whole": torch.arange(3), "half": torch.ones(2, dtype=torch.bfloat16)}
    file = tmp_path / "model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    files = TensorFiles(file)
    assert files.specs["half"].dtype == jnp.bfloat16
    assert {name: array.tolist() for name, array in files.read(tensors)} == {
        "whole": [0, 1, 2],
        "half": [1, 1],
    }
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(SourceError, match="is damaged"):
        TensorFiles(file)


@pytest.mark.parametrize("config", ["another objective", "another model"])
def test_all_that_is_wrong_is_told_at_once(half, config, tmp_path, capsys):
    source = shutil.copytree(half[0], tmp_path / "source")
    cases = ("truncated", "web page", "missing shard", "no tokenizer", config)
    for case in cases:
        BAD_SOURCES[case][0](source)
    assert main(["cogvideox", "--src", str(source), "--dst", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    for case in cases:
        assert all(part in message for part in BAD_SOURCES[case][1]), case


@pytest.mark.parametrize("command", ["cogvideox", "export"])
def test_a_full_disk_leaves_nothing(half, command, tmp_path, capsys, monkeypatch):
    calls = []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    target = (
        (weight_folder.Writer, "write") if command == "cogvideox" else (export_room, "save_file")
    )
    real = getattr(*target)
    monkeypatch.setattr(*target, fail)
    source = half[0] if command == "cogvideox" else half[1]
    arguments = [command, "--src", str(source), "--dst", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert main(arguments) == 2
    assert "GB are needed" in capsys.readouterr().err


def test_a_destination_is_never_overwritten(half, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["cogvideox", "--src", str(half[0]), "--dst", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_beside_the_destination_is_touched(tmp_path):
    precious = tmp_path / "mine.partial/precious"
    precious.parent.mkdir()
    precious.write_text("precious")
    refused = pytest.raises(FolderError, match="mine exists already")
    with refused, folders.new_folder(tmp_path / "mine", 1) as slower:
        (slower / "name").write_text("slower")
        with folders.new_folder(tmp_path / "mine", 1) as faster:
            (faster / "name").write_text("faster")
    assert (tmp_path / "mine/name").read_text() == "faster"
    refused = pytest.raises(FolderError, match="cannot be written")
    with refused, folders.new_folder(tmp_path / "above/new", 1) as folder:
        (folder / "missing/name").write_text("")
    assert precious.read_text() == "precious"
    assert {entry.name for entry in tmp_path.iterdir()} == {"mine", "mine.partial"}
    assert (tmp_path / "mine").stat().st_mode == precious.parent.stat().st_mode


def test_export_refuses_what_diffusers_cannot_hold(capsys, tmp_path):
    toy = Path(__file__).resolve().parents[2] / "checkpoints" / "toy"
    assert main(["export", "--src", str(toy), "--dst", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "personalization: " in message and "motion: " not in message


def test_the_check_of_one_full_size_layer(half, capsys, monkeypatch):
    source, converted = half
    options = SimpleNamespace(src=source, converted=converted, layer=1)
    assert full_size_check.compare(options) == 0
    assert "layer 1: relative error of text" in capsys.readouterr().out
    ours = full_size_check._our_block
    monkeypatch.setattr(
        full_size_check, "_our_block", lambda *given: [x + 1e-3 for x in ours(*given)]
    )
    assert full_size_check.compare(options) == 1
