"""Proof at full size without a download: a random CogVideoX-5B is written, converted, compared.

python scripts/full_size_check.py write --dst /tmp/random_5b                (21 GB, some minutes)
/usr/bin/time -v python -m convert cogvideox --src /tmp/random_5b --dst /tmp/converted_5b
python scripts/full_size_check.py compare --src /tmp/random_5b --converted /tmp/converted_5b

`compare` needs the `dev` extra: it runs one block of diffusers' transformer beside ours.
"""

import argparse
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from convert.checkpoints import diffusers_config, export
from convert.checkpoints.components import COMPONENTS, Component, target
from convert.engine.rules import plan_export
from convert.engine.tensor_files import TensorFiles
from tora2_jax import config
from tora2_jax.models.blocks import Block, Shared
from tora2_jax.models.layers.basic import assign_variables, flat_variables, rotary_tables
from tora2_jax.models.layers.stream import Layout
from tora2_jax.system.addresses import local_path
from tora2_jax.system.stop import exit_code
from tora2_jax.weights import checkpoint
from tora2_jax.weights import folder as weight_folder

TOKENIZER = Path(__file__).resolve().parent.parent / "checkpoints" / "toy" / "tokenizer"
GRID = (2, 3, 4)  # tokens of the block's input
TEXT = 7


def main() -> int:
    """Runs one of the two commands; exit code 1 if the block's outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("write", help="random weights as a download has them")
    command.add_argument("--preset", default="cogvideox_5b", choices=sorted(config.PRESETS))
    command.add_argument("--dst", type=local_path, required=True)
    command.set_defaults(run=write)
    command = commands.add_parser("compare", help="one block, converted and in PyTorch")
    command.add_argument("--src", type=local_path, required=True)
    command.add_argument("--converted", type=local_path, required=True)
    command.add_argument("--layer", type=int, default=20)
    command.set_defaults(run=compare)
    options = parser.parse_args()
    return options.run(options)


def write(options: argparse.Namespace) -> int:
    """A folder of random bfloat16 tensors with all of the preset's names and shapes."""
    model = replace(config.PRESETS[options.preset](), motion=None)  # plain CogVideoX
    options.dst.mkdir(parents=True)
    for component in COMPONENTS.values():
        tensors = _random_tensors(component, model)
        export.write_tensors(options.dst / component.folder, component.stem, tensors)
    export.write_settings(options.dst, diffusers_config.write(model), TOKENIZER)
    return 0


def _random_tensors(
    component: Component, model: config.ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
    arrays = target(component, model)
    for path, pieces in plan_export(component.rules(model), arrays).items():
        for name, layer, transform, _ in pieces:
            shape = arrays[path].shape if layer is None else arrays[path].shape[1:]
            hollow = np.broadcast_to(np.zeros((), np.int8), shape)
            yield name, _random(name, transform.backward(hollow).shape)


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep a network tame, different for every name."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, np.float32)
    if len(shape) > 1:
        values *= np.float32(np.prod(shape[1:]) ** -0.5)
    else:
        values = values * np.float32(0.1) + np.float32(name.endswith("weight"))
    return values.astype(ml_dtypes.bfloat16)


def compare(options: argparse.Namespace) -> int:
    """One block with converted weights and with the source's, on the same input, in float32."""
    model = checkpoint.component_metadata(options.converted / "transformer")["model"]
    settings = config.from_dict(config.ModelConfig, model).transformer
    generator = np.random.default_rng(0)
    text, video, embedding = (
        generator.standard_normal(shape, np.float32)
        for shape in (
            (1, TEXT, settings.width),
            (1, int(np.prod(GRID)), settings.width),
            (1, settings.time_embed_dim),
        )
    )
    coordinates = tuple(np.arange(length) for length in GRID)
    tables = rotary_tables(coordinates, settings.head_dim)
    ours = _our_block(options, settings, (text, video, embedding), tables)
    theirs = _their_block(options, settings, (text, video, embedding), tables)
    errors = [
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)
    ]
    print(
        f"layer {options.layer}: relative error of text {errors[0]:.2e}, of video {errors[1]:.2e}"
    )
    return 0 if max(errors) <= 1e-5 else 1


def _our_block(options, settings, streams, tables) -> list[np.ndarray]:
    folder, prefix = options.converted / "transformer", "transformer.blocks."
    block = nnx.eval_shape(lambda: Block(settings, None, False, rngs=nnx.Rngs(0), dtype=np.float32))
    specs = checkpoint.component_specs(folder)
    arrays = {}
    for path in flat_variables(block):  # one stacked array at a time
        stacked = specs[prefix + path]
        wanted = {prefix + path: jax.ShapeDtypeStruct(stacked.shape, stacked.dtype)}
        (whole,) = weight_folder.restore(folder, wanted).values()
        arrays[path] = np.asarray(whole[options.layer])
    assign_variables(block, arrays)
    text, video, embedding = streams
    layout = Layout.of(TEXT, GRID)
    cosines, sines = map(layout.place_video, tables)
    shared = Shared(layout, embedding, (cosines.at[:TEXT].set(1), sines), None, None)
    stream = np.concatenate([text, video], axis=1)
    with jax.default_matmul_precision("highest"):
        output, _ = nnx.jit(lambda block, stream: block(stream, shared))(block, stream)
    return [np.asarray(output[:, :TEXT]), np.asarray(output[:, TEXT:])]


def _their_block(options, settings, streams, tables) -> list[np.ndarray]:
    import torch
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    block = CogVideoXBlock(
        dim=settings.width,
        num_attention_heads=settings.num_heads,
        attention_head_dim=settings.head_dim,
        time_embed_dim=settings.time_embed_dim,
        attention_bias=True,
    )
    prefix = f"transformer_blocks.{options.layer}."
    files = TensorFiles(options.src / "transformer")
    names = [name for name in files.specs if name.startswith(prefix)]
    tensors = {
        name.removeprefix(prefix): torch.from_numpy(value.astype(np.float32))
        for name, value in files.read(names)
    }
    block.load_state_dict(tensors)
    rotary = [torch.from_numpy(np.repeat(np.asarray(table), 2, axis=1)) for table in tables]
    text, video, embedding = map(torch.from_numpy, streams)
    with torch.no_grad():
        video, text = block(video, text, embedding, rotary)
    return [text.numpy(), video.numpy()]


if __name__ == "__main__":
    sys.exit(exit_code(main))
