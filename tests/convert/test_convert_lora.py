"""`convert lora` and `convert export --base`: LoRAs made with PEFT, merged and taken out again."""

import copy
import json
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
from diffusers import CogVideoXPipeline
from flax import nnx
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from convert.checkpoints.components import COMPONENTS
from convert.engine.rules import export
from tests.support import cogvideox_twins as twins
from tests.support.parity import BLOCK_TOLERANCE, relative_error
from tora2_jax.models.blocks import Shared
from tora2_jax.models.layers import basic
from tora2_jax.models.layers.stream import Layout
from tora2_jax.weights import bundle, checkpoint

NAME, TARGETS = "cogvideox_5b", ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj"]
TENSOR_TOLERANCE = 1e-6


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The 5B twin in float32: as a download, and converted."""
    return twins.convert(NAME, tmp_path_factory.mktemp("base"))


def trained(**settings):
    """A transformer under PEFT whose LoRA is not at its beginning, where it changes nothing."""
    transformer = copy.deepcopy(twins.pipeline(NAME).transformer)
    given = {"r": 4, "lora_alpha": 10, "target_modules": TARGETS} | settings
    model = peft.get_peft_model(transformer, peft.LoraConfig(**given))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def merged_by_diffusers(folder, scale=1.0):
    """The twin's transformer with a LoRA in it, by diffusers from its own form of the file."""
    parts = dict(twins.pipeline(NAME).components)
    parts["transformer"] = copy.deepcopy(parts["transformer"])
    pipeline = CogVideoXPipeline(**parts)
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    return pipeline.transformer


def merged_here(folder):
    """All tensors of a checkpoint's transformer by diffusers' names."""
    model, component = bundle.load_config(folder), COMPONENTS["transformer"]
    arrays = {
        path.removeprefix(component.prefix): array
        for path, array in checkpoint.read_component(folder / "transformer")
    }
    return export(component.rules(model), arrays)


def assert_equal(ours, theirs):
    theirs = {name: tensor.detach().numpy() for name, tensor in theirs.items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert relative_error(tensor, theirs[name]) <= TENSOR_TOLERANCE, name


PATTERNS = {"rank_pattern": {"to_q": 3}, "alpha_pattern": {"1.attn1.to_k": 2, "to_k": 5}}


@pytest.mark.parametrize(
    "settings", [{}, PATTERNS, {"use_rslora": True}], ids=["plain", "patterns", "by root"]
)
def test_a_lora_of_peft_merges_as_in_peft(base, settings, tmp_path, capsys):
    model = trained(**settings)
    model.save_pretrained(tmp_path / "lora")
    run("lora", "--src", tmp_path / "lora", "--base", base[1], "--dst", tmp_path / "out")
    told = capsys.readouterr().out
    assert "merged 13 weights of rank" in told and "does not say its alpha" not in told
    assert_equal(merged_here(tmp_path / "out"), model.merge_and_unload().state_dict())


def test_a_base_in_bfloat16_is_rounded_once(tmp_path):
    model, half = trained(), twins.convert(NAME, tmp_path / "base", dtype=torch.bfloat16)[1]
    model.save_pretrained(tmp_path / "lora")
    run("lora", "--src", tmp_path / "lora", "--base", half, "--dst", tmp_path / "out")
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data.copy_(parameter.data.bfloat16())
    ours = merged_here(tmp_path / "out")
    for name, tensor in model.merge_and_unload().state_dict().items():
        same = ours[name].astype(np.float32) == tensor.bfloat16().float().numpy()
        assert same.mean() > 0.99, name


@pytest.mark.parametrize("metadata", [True, False])
def test_a_lora_of_diffusers_merges_as_in_diffusers(base, metadata, tmp_path, capsys):
    """With its settings in the file; and without, where alpha is the rank in both."""
    model = trained()
    state = peft.get_peft_model_state_dict(model)
    given = model.peft_config["default"].to_dict() if metadata else None
    CogVideoXPipeline.save_lora_weights(
        tmp_path / "lora",
        {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()},
        transformer_lora_adapter_metadata=given
        and {k: given[k] for k in ("r", "lora_alpha")}
        | {"target_modules": sorted(given["target_modules"])},
    )
    command = ("lora", "--src", tmp_path / "lora", "--base", base[1], "--scale", 0.5)
    assert run(*command, "--dst", tmp_path / "out") == 0
    assert ("does not say its alpha" in capsys.readouterr().out) == (not metadata)
    theirs = merged_by_diffusers(tmp_path / "lora", 0.5)
    assert_equal(merged_here(tmp_path / "out"), theirs.state_dict())
    assert_block_equal(tmp_path / "out", theirs)
    for name in ("vae", "text"):
        ours, given = (
            dict(checkpoint.read_component(x / name)) for x in (tmp_path / "out", base[1])
        )
        assert all(np.array_equal(ours[path], given[path]) for path in given)


def assert_block_equal(folder, transformer):
    """The second block's output, where every token is at the origin."""
    blocks = bundle.load_bundle(folder)[1].transformer.blocks
    generator = np.random.default_rng(1)
    text, video, embedding = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, twins.TEXT_LENGTH, 32), (2, 18, 32), (2, 12))
    )
    layout = Layout.of(twins.TEXT_LENGTH, (3, 2, 3))
    tables = basic.rotary_tables((np.zeros(3), np.zeros(2), np.zeros(3)), 16)
    cosines, sines = map(layout.place_video, tables)
    shared = Shared(layout, embedding, (cosines.at[: twins.TEXT_LENGTH].set(1), sines), None, None)
    block = basic.map_arrays(lambda x: x[1], blocks)
    stream = np.concatenate([text, video], axis=1)
    actual, _ = nnx.jit(lambda block, stream: block(stream, shared))(block, stream)
    with torch.no_grad():
        wanted = transformer.transformer_blocks[1](
            *map(torch.from_numpy, (video, text, embedding)), None
        )
    expected = np.concatenate([wanted[1], wanted[0]], axis=1)
    assert relative_error(jax.device_get(actual), expected) <= BLOCK_TOLERANCE


def comfy_names(state):
    """As trainers for ComfyUI write them, with an alpha for each."""
    found = {}
    for name, tensor in state.items():
        module, letter = name.removeprefix("base_model.model.").split(".lora_")
        start = "lora_unet__" + module.replace(".", "_")
        found[f"{start}.lora_{'down' if letter[0] == 'A' else 'up'}.weight"] = tensor.numpy()
        found[f"{start}.alpha"] = np.array(10.0, np.float32)
    return found


def test_a_lora_for_comfyui_merges_alike(base, tmp_path):
    model = trained()
    save_file(comfy_names(peft.get_peft_model_state_dict(model)), tmp_path / "style.safetensors")
    command = ("lora", "--src", tmp_path / "style.safetensors", "--base", base[1])
    assert run(*command, "--dst", tmp_path / "out") == 0
    assert_equal(merged_here(tmp_path / "out"), model.merge_and_unload().state_dict())


def test_the_difference_goes_back_out_as_a_lora(base, tmp_path, capsys):
    """What diffusers makes of it is the merged checkpoint again."""
    trained().save_pretrained(tmp_path / "lora")
    merged, back = tmp_path / "merged", tmp_path / "back"
    assert run("lora", "--src", tmp_path / "lora", "--base", base[1], "--dst", merged) == 0
    assert run("export", "--src", merged, "--base", base[1], "--dst", back) == 0
    assert "13 weights differ; rank 4" in capsys.readouterr().out
    (file,) = back.iterdir()
    assert {tensor.shape[0] for name, tensor in load_file(file).items() if "_A" in name} == {4}
    ours, theirs = merged_here(merged), merged_by_diffusers(back).state_dict()
    for name, tensor in ours.items():
        assert relative_error(tensor, theirs[name].detach().numpy()) <= BLOCK_TOLERANCE, name
    command = ("export", "--src", merged, "--base", base[1], "--dst", tmp_path / "small")
    assert run(*command, "--rank", 1) == 0
    left_out = float(capsys.readouterr().out.split("rank 1; at most ")[1].split(" ")[0])
    assert 0.1 < left_out < 1
    same = ("export", "--src", base[1], "--base", base[1], "--dst", tmp_path / "none")
    assert "no weight that differs" in refusal(capsys, *same)
    assert "--rank is of a LoRA" in refusal(capsys, *same[:3], "--dst", tmp_path, "--rank", 2)


def test_what_a_lora_cannot_hold_is_told(base, tmp_path, capsys):
    source = shutil.copytree(base[0], tmp_path / "source")
    file = next((source / "transformer").glob("*-00001-of-*"))
    tensors = load_file(file)
    assert "patch_embed.proj.bias" in tensors
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file, {"format": "pt"})
    assert run("cogvideox", "--src", source, "--dst", tmp_path / "tuned") == 0
    command = ("export", "--src", tmp_path / "tuned", "--base", base[1], "--dst", tmp_path / "out")
    message = refusal(capsys, *command)
    assert "biases, norms and tables" in message and not (tmp_path / "out").exists()
    assert run(*command, "--accept-differences") == 0
    assert "left out: the change of patch_embed.proj.bias" in capsys.readouterr().out


def _without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


BAD = {
    "half": (
        lambda state: _without(state, "blocks.1.attn1.to_k.lora_B"),
        ["transformer_blocks.1.attn1.to_k: has no up matrix"],
    ),
    "another model": (
        lambda state: (
            {name.replace("to_q", "q_proj"): x for name, x in state.items()}
            | {"base_model.model.proj_out.lora_A.weight": np.ones((4, 9), np.float32)}
            | {"base_model.model.proj_out.lora_B.weight": np.ones((16, 4), np.float32)}
        ),
        ["extra: base_model.model.transformer_blocks.0.attn1.q_proj", "misshapen: proj_out"],
    ),
    "DoRA": (
        lambda state: state | {"base_model.model.x.lora_magnitude_vector": np.ones(3, np.float32)},
        ["is a DoRA", "merge_and_unload"],
    ),
    "not finite": (
        lambda state: {name: x * np.float32("nan") for name, x in state.items()},
        ["lora_A.weight has 128 values of 128 that are not finite"],
    ),
    "integers": (
        lambda state: {name: (x * 99).astype(np.int8) for name, x in state.items()},
        ["is stored as int8"],
    ),
    "rank 0": (
        lambda state: {name: x[:0] if "lora_A" in name else x[:, :0] for name, x in state.items()},
        ["hold no numbers"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_loras_are_refused_in_words(base, case, tmp_path, capsys):
    damage, expected = BAD[case]
    state = peft.get_peft_model_state_dict(trained())
    lora = tmp_path / "adapter_model.safetensors"
    save_file(damage({name: tensor.numpy() for name, tensor in state.items()}), lora)
    message = refusal(capsys, "lora", "--src", lora, "--base", base[1], "--dst", tmp_path / "out")
    assert all(part in message for part in expected), message
    assert [entry.name for entry in tmp_path.iterdir()] == [lora.name]


def test_settings_that_change_the_base_are_refused(base, tmp_path, capsys):
    lora = tmp_path / "lora"
    trained().save_pretrained(lora)
    settings = json.loads((lora / "adapter_config.json").read_text())
    wrong = {"init_lora_weights": "pissa", "use_dora": True, "lora_alpha": "ten"}
    (lora / "adapter_config.json").write_text(json.dumps(settings | wrong))
    command = ("lora", "--src", lora, "--base", tmp_path / "none", "--dst", tmp_path / "out")
    assert "--base: checkpoint" in refusal(capsys, *command)
    message = refusal(capsys, *command[:4], base[1], *command[5:])
    for part in ("init_lora_weights is 'pissa'", "use_dora is True", "do not hold numbers"):
        assert part in message
    for pattern in ([3], {"to_q": "x"}, {"(": 3}, {"to_q": float("nan")}):
        (lora / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": pattern}))
        message = refusal(capsys, *command[:4], base[1], *command[5:])
        assert "alpha_pattern do not hold numbers by names" in message


@pytest.mark.parametrize("command", ["cogvideox", "tora", "t5"])
def test_a_lora_is_no_model(base, command, tmp_path, capsys):
    trained().save_pretrained(tmp_path / "lora")
    shutil.copy(base[0] / "text_encoder/config.json", tmp_path / "lora")
    message = refusal(capsys, command, "--src", tmp_path / "lora", "--dst", tmp_path / "out")
    assert ("merge_and_unload" if command == "t5" else "`convert lora --src") in message


@pytest.mark.parametrize("scale", ["nan", "inf", "much"])
def test_a_strength_is_a_finite_number(base, scale, tmp_path, capsys):
    command = ["lora", "--src", "none", "--base", str(base[1]), "--dst", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main([*command, f"--scale={scale}"])
    assert end.value.code == 2 and f"'{scale}' is no finite number" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{{", "[1]"])
def test_damaged_settings_inside_a_lora_are_not_passed_over(base, text, tmp_path, capsys):
    state = peft.get_peft_model_state_dict(trained())
    lora = tmp_path / "lora.safetensors"
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    save_file(arrays, lora, metadata={"lora_adapter_metadata": text})
    message = refusal(capsys, "lora", "--src", lora, "--base", base[1], "--dst", tmp_path / "out")
    assert "lora.safetensors: lora_adapter_metadata in its header is no JSON object" in message
