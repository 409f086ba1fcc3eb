"""Tiny random encoders of transformers, saved as people download them, and what becomes of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from convert.__main__ import main
from tests.support.parity import randomize
from tora2_jax.models.layers.basic import assign_variables
from tora2_jax.weights import checkpoint


def save(twin, folder: Path, kind: str = "safetensors", dtype=torch.float32) -> Path:
    """A twin with all tensors random; `kind` is safetensors, shards or pickle.

    In `dtype` on the disk, and with the same values in float32 here.
    """
    randomize(twin, 2).to(dtype)
    twin.save_pretrained(folder, max_shard_size="4KB" if kind == "shards" else "1GB")
    twin.float()
    if kind == "pickle":
        from safetensors.torch import load_file

        file = folder / "model.safetensors"
        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
    assert (folder / "model.safetensors.index.json").is_file() == (kind == "shards")
    return folder


def convert(
    command: str, source: Path, destination: Path, component: str
) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """What the command makes of a source: variables by path, and the settings stored beside."""
    assert main([command, "--src", str(source), "--dst", str(destination)]) == 0
    arrays, metadata = checkpoint.load_component(checkpoint.resolve(destination, component))
    return arrays, metadata["model"][component]


def refusal(capsys, command: str, source: Path, destination: Path) -> list[str]:
    """The lines of the message with which a command refuses; nothing may have been written."""
    before = sorted(destination.parent.iterdir())
    capsys.readouterr()  # what making the source has said
    assert main([command, "--src", str(source), "--dst", str(destination)]) == 2
    assert sorted(destination.parent.iterdir()) == before
    out, error = capsys.readouterr()
    assert "Traceback" not in out + error
    return error.splitlines()


def change_config(folder: Path, **settings) -> None:
    """Overwrites settings of a `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def compiled(make, call):
    """`call(module, *inputs)` as a function of all variables by path, and the inputs."""
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))

    @jax.jit
    def forward(variables, *inputs):
        copy = nnx.clone(module)
        assign_variables(copy, variables)
        return call(copy, *inputs)

    return forward
