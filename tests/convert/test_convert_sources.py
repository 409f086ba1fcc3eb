"""The forms in which people hold CogVideoX's and Tora's weights: which are read, and as what."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.__main__ import main
from convert.engine.tensor_files import SourceError, TensorFiles
from tests.support import cogvideox_twins as twins
from tests.support import tora_twins
from tests.support.parity import numpy_state
from tora2_jax.config import PRESETS
from tora2_jax.weights import bundle, checkpoint

T2V = "cogvideox_5b"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The 5B twin in float32: as a download, and converted."""
    return twins.convert(T2V, tmp_path_factory.mktemp("made"))


def arrays(folder, parts=("transformer", "vae", "text")):
    return {
        f"{part}.{path}": array
        for part in parts
        for path, array in checkpoint.read_component(folder / part)
    }


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[path].dtype, theirs[path].shape), path
        assert array.tobytes() == theirs[path].tobytes(), path


def transformer(name=T2V):
    """A twin's tensors by diffusers' names."""
    state = twins.pipeline(name).transformer.state_dict()
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def _prefixed(prefix):
    return {prefix + name: tensor for name, tensor in transformer().items()}


def _file(folder):
    save_file(transformer(), folder / "CogVideoX_5b_style.safetensors")
    return folder / "CogVideoX_5b_style.safetensors"


def _folder(folder):
    save_file(_prefixed("module."), folder / "diffusion_pytorch_model.safetensors")
    settings = twins.pipeline(T2V).transformer.config
    (folder / "config.json").write_text(json.dumps(dict(settings)))
    return folder


def _comfyui(folder):
    save_file(_prefixed("model.diffusion_model."), folder / "all.sft")
    return folder / "all.sft"


def _compiled(folder):
    tensors = {
        name.replace(".attn1.", "._orig_mod.attn1."): tensor
        for name, tensor in _prefixed("_orig_mod.module.").items()
    }
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "last.ckpt")
    return folder / "last.ckpt"


def _deepspeed(folder):
    (folder / "pytorch_model").mkdir()
    torch.save({"module": transformer()}, folder / "pytorch_model/mp_rank_00_model_states.pt")
    (folder / "latest").write_text("pytorch_model\n")
    (folder / "zero_to_fp32.py").write_text("")
    return folder


ALONE = {
    "file": (_file, ""),
    "folder with a prefix": (_folder, "taken off the names of all tensors: module."),
    "of ComfyUI": (_comfyui, "taken off the names of all tensors: model.diffusion_model."),
    "compiled": (_compiled, "left out of the names: _orig_mod\ntaken off the names of all"),
    "of DeepSpeed": (_deepspeed, "mp_rank_00_model_states.pt, to which"),
}


@pytest.mark.parametrize("form", ALONE)
def test_a_transformer_alone_takes_the_rest_from_the_base(made, form, tmp_path, capsys):
    make, told = ALONE[form]
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source")
    command = ("cogvideox", "--src", source, "--dst", tmp_path / "out")
    message = refusal(capsys, *command)
    assert "it is a transformer alone" in message and "--base" in message
    assert ("of DeepSpeed leads" in message) == (form == "of DeepSpeed")
    assert run(*command, "--base", made[1]) == 0
    assert told in capsys.readouterr().out
    assert_same(arrays(tmp_path / "out"), arrays(made[1]))
    ours, theirs = (bundle.load_config(folder) for folder in (tmp_path / "out", made[1]))
    ours.name = theirs.name
    assert ours == theirs
    assert (tmp_path / "out/tokenizer").is_dir()


def test_a_base_of_another_kind_is_refused(made, tmp_path, capsys):
    source = _folder(tmp_path)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"num_layers": 1}))
    command = ("cogvideox", "--src", source, "--base", made[1], "--dst", tmp_path / "out")
    assert "transformer.num_layers is 2, but the source's is 1" in refusal(capsys, *command)


def _save(folder, shards, variant):
    twin = twins.pipeline(T2V)
    for part in ("transformer", "vae", "text_encoder"):
        size = "20KB" if shards else "1GB"
        getattr(twin, part).save_pretrained(folder / part, max_shard_size=size, variant=variant)
    twin.scheduler.save_pretrained(folder / "scheduler")
    twins.write_tokenizer(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("shards", [True, False])
def test_variants_are_read_and_told(made, shards, tmp_path, capsys):
    source = _save(tmp_path / "source", shards, "fp16")
    names = {file.name for file in (source / "vae").iterdir()}
    assert "diffusion_pytorch_model.safetensors" not in names
    assert ("diffusion_pytorch_model.safetensors.index.fp16.json" in names) == shards
    assert run("cogvideox", "--src", source, "--dst", tmp_path / "out") == 0
    assert capsys.readouterr().out.count("read the variant fp16") == 3
    assert_same(arrays(tmp_path / "out"), arrays(made[1]))


def test_one_variant_of_several_is_nobodys_guess(tmp_path):
    for variant in ("fp16", "bf16"):
        save_file({"a": torch.ones(1)}, tmp_path / f"model.{variant}.safetensors")
    with pytest.raises(SourceError, match="holds the variants bf16, fp16; keep the files of one"):
        TensorFiles(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert TensorFiles(tmp_path).notes == []


def test_shards_are_read_without_their_index(tmp_path):
    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({f"part{number}": torch.full((1,), number)}, tmp_path / name)
    files = TensorFiles(tmp_path)
    assert {name: array.item() for name, array in files.read(files.specs)} == {
        "part1": 1,
        "part2": 2,
    }
    assert "has no index" in files.notes[0]
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match="of 2 shards these are missing: 1"):
        TensorFiles(tmp_path)


RUNS = {
    "stage 3": ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"),
    "parallel": ("mp_rank_01_model_states.pt", "2 files mp_rank_"),
    "distributed": ("__0_0.distcp", "dcp_to_torch"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_runs_that_are_cut_into_parts_are_refused_with_the_next_step(kind, tmp_path):
    name, expected = RUNS[kind]
    (tmp_path / name).write_bytes(b"0")
    if kind == "parallel":
        (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"0")
    with pytest.raises(SourceError, match=expected):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("name", ["../other", "", "gone"])
def test_latest_leads_to_a_folder_beside_it_only(name, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "latest").write_text(name)
    torch.save({"a": torch.ones(1)}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(SourceError, match="which is no folder beside it"):
        TensorFiles(run_folder)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "toy"])
def test_sat_of_cogvideox_is_the_same_model(name, tmp_path, capsys):
    source, base = twins.convert(name, tmp_path / "base")
    config = twins.pipeline(name).transformer.config
    tokens = 5 * config.sample_height * config.sample_width // 4
    sat = tora_twins.sat(transformer(name), (tokens, config.attention_head_dim))
    if name == "cogvideox_2b":  # a fixed table, computed here
        table = torch.randn(1, tokens + twins.TEXT_LENGTH, 32)
        sat[f"{tora_twins.NETWORK}mixins.pos_embed.pos_embedding"] = table
    folder = tmp_path / "run"
    tora_twins.save_sat(sat, folder / "1000/mp_rank_00_model_states.pt")
    (folder / "latest").write_text("1000")
    command = ("cogvideox", "--src", folder, "--dst", tmp_path / "out")
    assert "--base is needed" in refusal(capsys, *command)
    assert run(*command, "--base", base) == 0
    assert "left out: first_stage_model" in capsys.readouterr().out
    assert_same(arrays(tmp_path / "out"), arrays(base))
    ours, theirs = (bundle.load_config(folder) for folder in (tmp_path / "out", base))
    assert ours.transformer.final_norm_eps == 1e-6 and ours.null_text == "zeros"
    assert (ours.diffusion.scheduler, ours.diffusion.timestep_spacing) == ("dpm", "trailing")
    ours.transformer.final_norm_eps = theirs.transformer.final_norm_eps
    assert ours.transformer == theirs.transformer
    assert run("tora", "--src", folder, "--base", base, "--dst", tmp_path / "tora") == 2
    assert "none of Tora's tensors" in capsys.readouterr().err
    assert (source / "transformer").is_dir()


def test_loras_inside_sat_are_refused_with_the_next_step(made, tmp_path, capsys):
    sat = tora_twins.sat(transformer(), (30, 16))
    name = f"{tora_twins.NETWORK}transformer.layers.0.attention.dense.matrix_A.0"
    file = tora_twins.save_sat(sat | {name: torch.ones(4, 32)}, tmp_path / "sat.pt")
    command = ("cogvideox", "--src", file, "--base", made[1], "--dst", tmp_path / "out")
    assert "export_sat_lora_weight.py" in refusal(capsys, *command)


@pytest.fixture(scope="module")
def tora(made, tmp_path_factory):
    """A Tora of the diffusers version, converted, and its tensors."""
    folder = tmp_path_factory.mktemp("tora")
    source = tora_twins.save(T2V, folder / "source")
    assert run("tora", "--src", source, "--dst", folder / "converted") == 0
    return folder / "converted", tora_twins.tensors(T2V)


def test_comfyuis_two_files_make_the_same_tora(made, tora, tmp_path, capsys):
    whole, tensors = tora
    source = tmp_path / "CogVideoX-5b-Tora"
    for name in ("fuser", "traj_extractor"):
        (source / name).mkdir(parents=True)
        own = {key[len(name) + 1 :]: x for key, x in tensors.items() if key.startswith(f"{name}.")}
        save_file(own, source / name / f"{name}.safetensors")
    command = ("tora", "--src", source, "--dst", tmp_path / "out")
    assert "--base is needed" in refusal(capsys, *command)
    assert run(*command, "--base", made[1]) == 0
    parts = ("transformer", "motion", "vae", "text")
    assert_same(arrays(tmp_path / "out", parts), arrays(whole, parts))
    ours, theirs = (bundle.load_config(folder) for folder in (tmp_path / "out", whole))
    ours.name = theirs.name
    assert ours == theirs
    shutil.rmtree(source / "fuser")
    message = refusal(capsys, *command[:-1], tmp_path / "half", "--base", made[1])
    assert "fuser: there is no such file or folder" in message


def test_a_tora_can_be_the_base_of_a_cogvideox(made, tora, tmp_path):
    command = ("cogvideox", "--src", _file(tmp_path), "--base", tora[0])
    assert run(*command, "--dst", tmp_path / "out") == 0
    assert_same(arrays(tmp_path / "out"), arrays(made[1]))
    assert bundle.load_config(tmp_path / "out").motion is None


def test_a_tora_alone_takes_the_rest_from_the_base(made, tora, tmp_path):
    whole, tensors = tora
    save_file({f"module.{name}": x for name, x in tensors.items()}, tmp_path / "tora.safetensors")
    command = ("tora", "--src", tmp_path / "tora.safetensors", "--base", made[1])
    assert run(*command, "--dst", tmp_path / "out") == 0
    parts = ("transformer", "motion", "vae", "text")
    assert_same(arrays(tmp_path / "out", parts), arrays(whole, parts))


def test_taking_off_a_prefix_needs_all_names_and_a_reason(tmp_path):
    save_file({"a.b.c": torch.ones(1), "a.b.d": torch.ones(1)}, tmp_path / "model.safetensors")
    wanted = {
        ("c", "d"): {"c", "d"},
        ("b.c", "b.d"): {"b.c", "b.d"},
        ("a.b.c", "c", "d"): {"c", "d"},
        ("a.b.c", "a.b.d", "c", "d"): {"a.b.c", "a.b.d"},
        (): {"a.b.c", "a.b.d"},
    }
    for known, expected in wanted.items():
        files = TensorFiles(tmp_path)
        files.strip(lambda name, known=known: name in known)
        assert set(files.specs) == expected
    save_file({"a.c": torch.ones(1), "d": torch.ones(1)}, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    files.strip(lambda name: name in ("c", "d"))
    assert set(files.specs) == {"a.c", "d"}


def test_encoders_take_prefixes_off_and_tell_it(tmp_path, capsys):
    source = tmp_path / "source"
    encoder = twins.pipeline(T2V).text_encoder
    encoder.config.save_pretrained(source)
    tensors = {name: torch.from_numpy(x.copy()) for name, x in numpy_state(encoder).items()}
    tensors.pop("encoder.embed_tokens.weight", None)
    save_file({f"text.{name}": x for name, x in tensors.items()}, source / "model.safetensors")
    twins.write_tokenizer(source)
    assert run("t5", "--src", source, "--dst", tmp_path / "out") == 0
    assert "taken off the names of all tensors: text." in capsys.readouterr().out
    found = dict(checkpoint.read_component(Path(tmp_path / "out/text")))
    kernel = encoder.encoder.block[1].layer[0].SelfAttention.q.weight.detach().numpy().T
    np.testing.assert_array_equal(found["blocks.attention.query.kernel"][1], kernel)
