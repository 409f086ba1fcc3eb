"""Weights that cannot be used are recognized, in every family, and the next step is named."""

import argparse
import collections
import random
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.__main__ import main
from convert.engine import finite
from convert.engine.rules import COPY, ConversionError, Rule, assembled, plan
from convert.engine.tensor_files import SourceError, TensorFiles
from tests.support import cogvideox_twins as twins
from tests.support import encoder_twins, recognition_twins
from tora2_jax.errors import CheckpointError
from tora2_jax.evaluation.clip import load_clip_tokenizer
from tora2_jax.text import load_tokenizer
from tora2_jax.weights import checkpoint

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{7:064}\nsize 4964350364\n"


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


FOREIGN = {
    "Git LFS pointer": POINTER.encode(),
    "GGUF": b"GGUF\x03\0\0\0" + bytes(40),
    "web page": b"\n<!DOCTYPE html><html>Log in</html>",
    "is empty": b"",
}
FILES = {
    "arcface": "glintr100.onnx",
    "reid": "resnet50.pth",
    "dinov2": "model.safetensors",
    "clip": "pytorch_model.bin",
    "t5": "model.safetensors",
    "cogvideox": "CogVideoX_5b.safetensors",
    "tora": "mp_rank_00_model_states.pt",
    "lora": "pytorch_lora_weights.safetensors",
}


@pytest.mark.parametrize("command", FILES)
def test_every_command_tells_what_stands_in_a_files_place(command, tmp_path, capsys):
    file = tmp_path / FILES[command]
    base = ["--base", twins_base(tmp_path)] if command == "lora" else []
    for kind, content in FOREIGN.items():
        file.write_bytes(content)
        message = refusal(capsys, command, "--src", file, "--dst", tmp_path / "out", *base)
        assert f"{file}: " in message and kind in message
        assert "tiktoken" not in message and "not a whole" not in message
    file.write_text(POINTER)
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        dict(checkpoint.read_component(file))


def twins_base(folder):
    """A base that can be read as far as its settings and shapes."""
    return twins.convert("cogvideox_5b", folder / "base")[1]


@pytest.mark.parametrize(
    ("load", "names"),
    [
        (load_tokenizer, ["spiece.model"]),
        (load_tokenizer, ["tokenizer.json"]),
        (load_clip_tokenizer, ["vocab.json", "merges.txt"]),
    ],
)
def test_tokenizers_tell_it_too(load, names, tmp_path):
    for name in names:
        (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{names[0]} is a Git LFS pointer.*git lfs pull"):
        load(tmp_path)


def t5(folder):
    """A tiny T5 of transformers, with its tokenizer."""
    encoder_twins.save(twins.pipeline("cogvideox_5b").text_encoder, folder)
    twins.write_tokenizer(folder)
    return folder


def _each(tensors, change):
    return {name: change(x) if x.ndim == 2 else x for name, x in tensors.items()}


def _bitsandbytes(tensors):
    scales = {
        f"{name.removesuffix('weight')}SCB": torch.ones(len(x))
        for name, x in tensors.items()
        if "Dense" in name
    }
    return _each(tensors, lambda x: (99 * x).to(torch.int8)) | scales


QUANTIZED = {
    "float8": (
        lambda tensors: _each(tensors, lambda x: x.to(torch.float8_e4m3fn)),
        ["values of type F8_E4M3", "bfloat16, float16 or float32"],
    ),
    "float8 with scales": (
        lambda tensors: tensors | {"encoder.block.0.weight_scale": torch.ones(1)},
        ["quantized to 8 bits with scales"],
    ),
    "bitsandbytes": (_bitsandbytes, ["quantized by bitsandbytes to 8 bits"]),
    "GPTQ": (lambda tensors: tensors | {"a.qweight": torch.ones(1)}, ["by GPTQ or AWQ"]),
    "integers": (
        lambda tensors: _each(tensors, lambda x: (99 * x).to(torch.int8)),
        ["16 tensors are stored as int8, such as ", "are they quantized?"],
    ),
    "not finite": (
        lambda tensors: tensors | {"shared.weight": tensors["shared.weight"] * float("inf")},
        ["shared.weight has 4800 values of 4800 that are not finite"],
    ),
}


@pytest.mark.parametrize("case", QUANTIZED)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_quantized_and_broken_values_are_refused(case, suffix, tmp_path, capsys):
    change, expected = QUANTIZED[case]
    source = t5(tmp_path / "source")
    tensors = change(load_file(source / "model.safetensors"))
    if suffix == "bin":
        (source / "model.safetensors").unlink()
        torch.save(tensors, source / "pytorch_model.bin")
        expected = ["float8_e4m3fn; save it as bfloat16"] if case == "float8" else expected
    else:
        save_file(tensors, source / "model.safetensors")
    message = refusal(capsys, "t5", "--src", source, "--dst", tmp_path / "out")
    assert all(part in message for part in expected), message
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_config_that_says_so_is_enough(tmp_path, capsys):
    source = t5(tmp_path / "source")
    encoder_twins.change_config(source, quantization_config={"quant_method": "bitsandbytes"})
    message = refusal(capsys, "t5", "--src", source, "--dst", tmp_path / "out")
    assert "the weights are quantized by bitsandbytes; take the same model in bfloat16" in message


@pytest.mark.parametrize("command", ["arcface", "reid"])
def test_recognition_networks_refuse_them_too(command, tmp_path, capsys):
    twin = recognition_twins.face_twin()
    if command == "reid":
        twin = recognition_twins.reid_twin(recognition_twins.Torchvision)
    for change, expected in (
        (lambda x: x * float("nan"), "that are not finite"),
        (lambda x: (99 * x).to(torch.int8), "are stored as int8"),
    ):
        state = {name: change(x) if x.ndim == 4 else x for name, x in twin.state_dict().items()}
        torch.save(state, tmp_path / "backbone.pth")
        command_line = (command, "--src", tmp_path / "backbone.pth", "--dst", tmp_path / "out")
        assert expected in refusal(capsys, *command_line)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_values_that_are_not_finite_are_counted(dtype):
    values = np.array([[0, -1, 3e-8], [6e4, np.nan, -np.inf]]).astype(dtype)
    assert finite.not_finite(values) == "has 2 values of 6 that are not finite"
    assert finite.not_finite(values[:, :1]) is None
    assert finite.not_finite(values[1, 1]) == "has 1 values of 1 that are not finite"
    assert finite.not_finite(np.arange(3)) is None


def test_all_that_is_not_finite_is_told_and_nothing_is_written(tmp_path, capsys):
    source, converted = twins.convert("cogvideox_5b", tmp_path / "made")
    names = {}
    for part in ("transformer", "vae"):
        file = next((source / part).glob("*-00002-of-*"))
        tensors = load_file(file)
        names[part] = next(name for name, x in tensors.items() if name.endswith("weight"))
        tensors[names[part]].view(-1)[-1] = float("nan")
        save_file(tensors, file, {"format": "pt"})
    message = refusal(capsys, "cogvideox", "--src", source, "--dst", tmp_path / "out")
    for name in names.values():
        assert name in message
    assert not (tmp_path / "out").exists()
    assert converted.is_dir()


def test_what_is_not_finite_does_not_go_out_either(tmp_path, capsys):
    _, converted = twins.convert("cogvideox_5b", tmp_path / "made")
    variables = dict(checkpoint.read_component(converted / "transformer"))
    variables["transformer.output_projection.bias"] += np.float32("inf")
    metadata = checkpoint.component_metadata(converted / "transformer")
    shutil.rmtree(converted / "transformer")
    checkpoint.save_component(converted / "transformer.safetensors", variables, metadata, None)
    message = refusal(capsys, "export", "--src", converted, "--dst", tmp_path / "out")
    assert "proj_out.bias has 16 values of 16" in message
    assert not (tmp_path / "out").exists()


def test_the_engine_names_each_fault_once():
    rules = [Rule(r"layers\.(?P<layer>\d+)\.weight", "layers.kernel", COPY)]
    target = {"layers.kernel": np.zeros((3, 2), np.float32)}
    tensors = {f"layers.{layer}.weight": np.ones(2, np.uint8) for layer in range(3)}
    with pytest.raises(ConversionError, match=r"integers: 3 tensors are stored as uint8") as error:
        plan(rules, tensors, target)
    assert len(str(error.value).splitlines()) == 2
    tensors = {name: array * np.float32("nan") for name, array in tensors.items()}
    pieces = plan(rules, tensors, target)
    read = lambda names: ((name, tensors[name]) for name in names)  # noqa: E731
    with pytest.raises(finite.NonFiniteError) as error:
        list(assembled(pieces, {"layers.kernel": (3, 2)}, read))
    assert [f"layers.{layer}.weight has 2" in str(error.value) for layer in range(3)] == [True] * 3


def _beside(tensors):
    """What trainers keep in a file: SAT's random states, scores, flags."""
    return {
        "module": collections.OrderedDict(tensors),
        "iteration": 500,
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rank1": np.float64(0.9),
        "mask": np.ones(2, bool),
        "lr": np.float32(1e-4),
        "args": argparse.Namespace(lr=1e-4),
        "sparse_tensor_module_names": set(),
        "param_shapes": [{name: x.shape for name, x in tensors.items()}],
    }


@pytest.mark.parametrize("numpy_1", [False, True])
def test_random_states_beside_the_tensors_are_read(numpy_1, tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save(_beside(tensors), file, _use_new_zipfile_serialization=not numpy_1)
    if numpy_1:  # it had another name for the same module
        content = file.read_bytes()
        assert b"numpy._core.multiarray" in content
        file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    files = TensorFiles(tmp_path)
    assert {name: array.tolist() for name, array in files.read(files.specs)} == {
        "a": [0, 1, 2],
        "b": [1, 1],
    }


class _Code:
    def __reduce__(self):
        return print, ("ran",)


def test_other_objects_are_named_and_never_run(tmp_path, capsys):
    file = tmp_path / "model.pt"
    torch.save(_beside({"a": torch.ones(1)}) | {"trainer": _Code()}, file)
    with pytest.raises(SourceError, match=r"holds print, .* and was not run"):
        TensorFiles(file)
    assert "ran" not in capsys.readouterr().out


def test_an_onnx_file_is_for_arcface_alone(tmp_path, capsys):
    (tmp_path / "reid.onnx").write_bytes(b"\x08\x0a")
    command = ("reid", "--src", tmp_path / "reid.onnx", "--dst", tmp_path / "out")
    assert "only `convert arcface` reads those" in refusal(capsys, *command)


def test_no_advice_to_run_the_code_of_a_file(tmp_path):
    (tmp_path / "model.pt").write_text("import os\n")
    with pytest.raises(SourceError, match="is no file of PyTorch's, is damaged, or") as error:
        TensorFiles(tmp_path / "model.pt")
    assert "weights_only" not in str(error.value)
