"""`python -m convert tora`: both released forms in, diffusers' out, and videos along paths."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from convert.__main__ import main
from convert.checkpoints import components
from convert.engine.rules import plan
from convert.engine.tensor_files import TensorFiles
from convert.families import tora_sat
from scripts import sample
from tests.support import cogvideox_twins as twins
from tests.support import tora_twins
from tests.support.parity import relative_error
from tora2_jax.config import PRESETS, DiffusionConfig, MotionConfig
from tora2_jax.models.vae import tiling
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.weights import bundle, checkpoint

T2V, I2V, LATER = "cogvideox_5b", "cogvideox_5b_i2v", "cogvideox_1_5_5b"


def _run(*arguments):
    return main([str(argument) for argument in arguments])


def _refusal(capsys, *arguments):
    assert _run(*arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module", params=[T2V, I2V])
def made(request, tmp_path_factory):
    """One random Tora in both released forms, and what each becomes."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    paths = SimpleNamespace(
        name=name,
        base=folder / "base",
        diffusers=tora_twins.save(name, folder / "diffusers"),
        sat=tora_twins.save_sat(tora_twins.tiny_sat(name), folder / tora_sat.FILE),
        from_diffusers=folder / "from_diffusers",
        from_sat=folder / "from_sat",
    )
    source = twins.save(name, folder / "cogvideox")
    assert _run("cogvideox", "--src", source, "--dst", paths.base) == 0
    assert _run("tora", "--src", paths.diffusers, "--dst", paths.from_diffusers) == 0
    command = ("tora", "--src", paths.sat, "--base", paths.base, "--dst", paths.from_sat)
    assert _run(*command) == 0
    return paths


def _parameters(folder):
    return {
        f"{part}.{path}": array
        for part in ("transformer", "motion", "vae", "text")
        for path, array in checkpoint.read_component(folder / part)
    }


def _source(folder, parts=("transformer", "vae", "text_encoder")):
    found = {}
    for part in parts:
        files = TensorFiles(folder / part)
        found |= {f"{part}.{name}": tensor for name, tensor in files.read(files.specs)}
    return found


def _assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[path].dtype, theirs[path].shape), path
        assert array.tobytes() == theirs[path].tobytes(), path


def test_both_forms_give_the_same_parameters(made):
    _assert_same(_parameters(made.from_diffusers), _parameters(made.from_sat))


def test_what_tells_sat_from_diffusers_stays_a_setting(made):
    ours, theirs = (bundle.load_config(path) for path in (made.from_sat, made.from_diffusers))
    assert (ours.null_text, theirs.null_text) == ("zeros", "empty")
    assert (ours.transformer.final_norm_eps, theirs.transformer.final_norm_eps) == (1e-6, 1e-5)
    assert ours.transformer.norm_eps == theirs.transformer.norm_eps == 1e-5
    assert theirs.transformer.add_learned_positions
    assert ours.transformer.add_learned_positions == (made.name == T2V)
    assert ours.transformer.learned_positions == (made.name == I2V)
    for model in (ours, theirs):
        assert model.motion == MotionConfig(width=8) and model.personalization is None
    ours.diffusion = DiffusionConfig(scheduler="ddim", timestep_spacing="linspace")
    assert tora_sat.settings(ours, {}).diffusion == theirs.diffusion == DiffusionConfig()


def test_sat_goes_out_to_diffusers_where_that_is_accepted(made, tmp_path, capsys):
    command = ("export", "--src", made.from_sat, "--dst", tmp_path / "out")
    message = _refusal(capsys, *command)
    assert "final_norm_eps" in message and "null_text" in message
    assert not list(tmp_path.iterdir())
    assert _run(*command, "--accept-differences") == 0
    expected = _counted_from_zero(_source(made.diffusers))
    if made.name == I2V:  # diffusers would add them
        del expected["transformer.patch_embed.pos_embedding"]
        assert "transformer.positions" in capsys.readouterr().out
    _assert_same(_source(tmp_path / "out"), expected)
    if made.name == I2V:  # what diffusers does not know lies beside
        assert _run("tora", "--src", tmp_path / "out", "--dst", tmp_path / "again") == 0
        ours, theirs = (bundle.load_config(path) for path in (tmp_path / "again", made.from_sat))
        theirs.transformer.learned_positions = False
        assert ours == theirs and ours.null_text == "zeros"


def _counted_from_zero(tensors):
    """How many batches a norm has seen is not kept: no number depends on it."""
    return {
        name: np.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(T2V, torch.bfloat16), (I2V, torch.float16), (LATER, torch.float32)],
)
def test_round_trip_is_bit_exact(name, dtype, tmp_path, capsys):
    source = tora_twins.save(name, tmp_path / "source", dtype)
    if name == I2V:
        scheduler = source / "scheduler/scheduler_config.json"
        scheduler.write_text(scheduler.read_text().replace("XDPMS", "XDDIMS"))
    converted, returned = tmp_path / "converted", tmp_path / "returned"
    assert _run("tora", "--src", source, "--dst", converted) == 0
    assert ("kept from the scheduler's file: ddim" in capsys.readouterr().out) == (name == I2V)
    assert _run("export", "--src", converted, "--dst", returned) == 0
    after = _source(returned)
    _assert_same(after, _counted_from_zero(_source(source)))
    for key in ("fuser.1.flow_cond_norm.weight", "traj_extractor.body.3.bn2.running_var"):
        assert f"transformer.{key}" in after
    ours, theirs = (
        json.loads((folder / "transformer/config.json").read_text())
        for folder in (returned, source)
    )
    assert ours["_class_name"] == theirs["_class_name"] == "ToraTransformer3DModel"
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("made", [T2V], indirect=True)
def test_a_folder_without_the_rest_takes_it_from_the_base(made, tmp_path, capsys):
    source = shutil.copytree(made.diffusers, tmp_path / "source")
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(source / part)
    command = ("tora", "--src", source, "--dst", tmp_path / "out")
    settings = source / "transformer/config.json"
    right = settings.read_text()
    settings.write_text(json.dumps(json.loads(right) | {"patch_size": "two"}))
    message = _refusal(capsys, *command)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler", "--base", "cannot be 'two'"):
        assert part in message
    settings.write_text(right)
    assert _run(*command, "--base", made.base) == 0
    _assert_same(_parameters(tmp_path / "out"), _parameters(made.from_diffusers))
    ours, theirs = (bundle.load_config(path) for path in (tmp_path / "out", made.from_diffusers))
    theirs.name = ours.name
    assert ours == theirs


@pytest.mark.parametrize(("name", "count"), [(T2V, 2622), (I2V, 2623)])
def test_full_size_names_and_shapes_of_both_forms(name, count):
    model = PRESETS[name]()
    model.personalization = None
    released = tora_twins.full_size(model)
    assert len(released) == count
    parameters = sum(
        tensor.numel()
        for key, tensor in released.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked", "pos_embedding"))
    )
    assert parameters == 6_264_635_072 + (196_608 if name == I2V else 0)
    target = components.target(components.TORA, model)
    plan(components.TORA.rules(model), released, target)
    sat = tora_twins.sat(released, (17_550, 64))
    for key, shape in {
        "mixins.adaln_layer.adaLN_modulations.41.1.weight": (36_864, 512),
        "transformer.layers.41.attention.query_key_value.weight": (9216, 3072),
        "mixins.adaln_layer.fuser_list.41.flow_gamma_temporal.weight": (3072, 768, 3),
        "traj_extractor.body.83.block2.weight": (128, 128, 3, 3),
        "mixins.final_layer.linear.weight": (64, 3072),
    }.items():
        assert tuple(sat[tora_twins.NETWORK + key].shape) == shape
    assert tora_sat.base_problems(model, sat) == []
    plan(tora_sat.rules(model), sat, target)


def _code(tensors, folder):
    tensors["code"] = _Trap(folder / "trap")


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _wrong_keys(tensors, folder):
    del folder
    start = tora_twins.NETWORK
    tensors[f"{start}mixins.adaln_layer.fuser_list.0.flow_gamma.weight"] = tensors.pop(
        f"{start}mixins.adaln_layer.fuser_list.0.flow_gamma_spatial.weight"
    )
    del tensors[f"{start}traj_extractor.body.2.bn1.running_var"]
    fused = f"{start}transformer.layers.1.attention.query_key_value.bias"
    tensors[fused] = tensors[fused][:-1]
    patch = f"{start}mixins.patch_embed.proj.weight"
    tensors[patch] = tensors[patch][:, :3]


def _of_another_model(tensors, folder):
    del folder
    for name in [name for name in tensors if name.startswith(tora_twins.NETWORK)]:
        tensors[name.replace("mixins.", "blends.")] = tensors.pop(name)


def _without_motion(tensors, folder):
    del folder
    for name in [name for name in tensors if "traj_extractor" in name or "fuser_list" in name]:
        del tensors[name]


BAD_SAT = {
    "code": (_code, ["mp_rank_00_model_states.pt", "was not run"]),
    "wrong keys": (
        _wrong_keys,
        [
            "extra: model.diffusion_model.mixins.adaln_layer.fuser_list.0.flow_gamma.weight",
            "missing: transformer.blocks.fuser.gamma_spatial.kernel, layers 0",
            "missing: trajectory_extractor.blocks.first_norm.var, layers 2",
            "misshapen: model.diffusion_model.transformer.layers.1.attention.query_key_value.bias",
            "misshapen: model.diffusion_model.mixins.patch_embed.proj.weight (32, 3, 2, 2)",
        ],
    ),
    "another model": (_of_another_model, ["no tensor is called model.diffusion_model."]),
    "no motion": (_without_motion, ["none of Tora's tensors", "`convert cogvideox`"]),
}


@pytest.mark.parametrize("made", [T2V], indirect=True)
@pytest.mark.parametrize("case", BAD_SAT)
def test_bad_sat_files_are_refused_in_words(made, case, tmp_path, capsys):
    """Together with what is wrong with the base."""
    damage, expected = BAD_SAT[case]
    tensors = tora_twins.tiny_sat(T2V)
    damage(tensors, tmp_path)
    source = tora_twins.save_sat(tensors, tmp_path / "sat" / tora_sat.FILE)
    base = shutil.copytree(made.base, tmp_path / "base")
    shutil.rmtree(base / "tokenizer")
    shutil.rmtree(base / "vae")
    command = ("tora", "--src", source.parent, "--base", base, "--dst", tmp_path / "out")
    assert _run(*command) == 2
    message = capsys.readouterr().err
    for part in (*expected, "spiece.model", "--base: vae is not in"):
        assert part in message
    assert "Traceback" not in message
    assert {entry.name for entry in tmp_path.iterdir()} == {"sat", "base"}


@pytest.mark.parametrize("made", [T2V], indirect=True)
def test_sources_and_bases_of_another_kind_are_refused(made, tmp_path, capsys):
    out = ("--dst", tmp_path / "out")
    assert "--base is needed" in _refusal(capsys, "tora", "--src", made.sat, *out)
    message = _refusal(capsys, "tora", "--src", made.sat, "--base", tmp_path / "none", *out)
    assert "--base" in message and "is not a folder" in message
    assert "no such file" in _refusal(capsys, "tora", "--src", tmp_path / "nowhere", *out)
    message = _refusal(capsys, "tora", "--src", made.base.parent / "cogvideox", *out)
    assert "use `convert cogvideox`" in message
    message = _refusal(capsys, "cogvideox", "--src", made.diffusers, *out)
    assert message.count("use `convert tora`") == 2  # its class and its tensors
    assert "extra: " not in message
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    command = ("tora", "--src", tmp_path / "other.pt", "--base", made.base, *out)
    assert "holds no tensors" in _refusal(capsys, *command)
    base = shutil.copytree(made.base, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    settings["model"]["vae"]["scaling_factor"] = 1.15
    settings["model"]["transformer"] |= {"positions": "sincos", "sample_height": 8}
    (base / "config.json").write_text(json.dumps(settings))
    message = _refusal(capsys, "tora", "--src", made.sat, "--base", base, *out)
    for part in ("positions is 'sincos'", "scaling_factor is 1.15", "rotary tables"):
        assert part in message
    source = shutil.copytree(made.diffusers, tmp_path / "source")
    shutil.rmtree(source / "scheduler")
    message = _refusal(capsys, "tora", "--src", source, "--base", base, *out)
    assert "positions is 'sincos', but the source's is 'rotary'" in message
    assert not (tmp_path / "out").exists()


PATHS = ([[20, 30], [220, 200]], [[200, 30], [30, 220]])


def _requests(folder, made, *paths, frames=9, **fields):
    """Request files that differ in the path of the man alone."""
    size = {"height": twins.HEIGHT, "width": twins.WIDTH, "frames": frames}
    if made.name == I2V:
        pixels = np.random.default_rng(4).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "first.png")
        size["image"] = "first.png"
    written = []
    for index, points in enumerate(paths):
        entities = [{"word": "man", "trajectory": points}]
        content = {"prompt": twins.PROMPTS[0], "entities": entities} | size | fields
        written.append(folder / f"{index}.json")
        written[-1].write_text(json.dumps(content))
    return written


def _command(checkpoint_folder, requests, output):
    command = ["--checkpoint", checkpoint_folder, "--request", *requests, "--output", output]
    return [str(argument) for argument in command]


def _noise(folder, count, frames):
    """The same for every row, so that only the requests differ."""
    shape = (1, (frames - 1) // 4 + 1, 4, twins.HEIGHT // 8, twins.WIDTH // 8)
    one = np.random.default_rng(5).standard_normal(shape, np.float32)
    np.savez(folder / "noise.npz", latents=np.repeat(one, count, 0))
    return ["--init-latents", str(folder / "noise.npz"), "--steps", "2", "--scheduler", "ddim"]


@pytest.fixture
def undecoded(monkeypatch):
    """Decoding is tested with the VAE, and takes long."""

    def decode(vae, latents, memory, tiles, progress):
        return np.zeros((len(latents), 9, twins.HEIGHT, twins.WIDTH, 3), np.float32)

    monkeypatch.setattr(tiling, "decode_latents", decode)


@pytest.fixture
def unconditional(monkeypatch):
    """What the sampler leads away from, as often as it asks."""
    seen, make = [], Tora2Pipeline._bound

    def bound(self, model_state, conditions, null, branches):
        seen.append(np.asarray(null))
        return make(self, model_state, conditions, null, branches)

    monkeypatch.setattr(Tora2Pipeline, "_bound", bound)
    return seen


@pytest.mark.usefixtures("undecoded")
def test_paths_steer_what_a_converted_tora_makes(made, unconditional, tmp_path):
    """T2V from SAT with its zero embedding, I2V from SAT with its image; no reference anywhere."""
    requests = _requests(tmp_path, made, *PATHS, PATHS[0])
    command = _command(made.from_sat, requests, tmp_path / "out.mp4")
    command += ["--save-latents", str(tmp_path / "latents.npz"), *_noise(tmp_path, 3, 9)]
    assert sample.main(command) == 0
    first, second, again = np.load(tmp_path / "latents.npz")["latents"]
    assert np.isfinite(first).all()
    assert relative_error(second, first) > 1e-3
    assert relative_error(again, first) < 1e-5
    assert len(unconditional) == 1 and not unconditional[0].any()
    assert (tmp_path / "out_2.mp4").is_file()


@pytest.mark.parametrize("made", [I2V], indirect=True)
def test_a_request_that_the_model_cannot_take_is_refused(made, tmp_path, capsys):
    """All at once; the sampler is never built."""
    requests = _requests(tmp_path, made, PATHS[0], image=None, frames=10)
    content = json.loads(requests[0].read_text())
    content["entities"][0]["images"] = ["first.png"]
    requests[0].write_text(json.dumps(content))
    assert sample.main(_command(made.from_sat, requests, tmp_path / "out.mp4")) == 2
    message = capsys.readouterr().err
    for field in ("image: ", "frames: 10", "entities[0].images: "):
        assert field in message
    assert "Traceback" not in message and not (tmp_path / "out.mp4").exists()


@pytest.mark.long
def test_paths_steer_the_frames(made, tmp_path):
    """Everything, decoding included, from the diffusers form."""
    requests = _requests(tmp_path, made, *PATHS, frames=17)
    command = _command(made.from_diffusers, requests, tmp_path / "out.mp4")
    command += ["--save-frames", str(tmp_path / "frames.npy"), *_noise(tmp_path, 2, 17)]
    assert sample.main(command) == 0
    first, second = np.load(tmp_path / "frames.npy")
    assert first.shape == (17, twins.HEIGHT, twins.WIDTH, 3)
    assert relative_error(second, first) > 1e-3
