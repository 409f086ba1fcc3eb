"""Measures what computing costs.

    python scripts/benchmark.py vae-memory [--network decoder] [--dtype bfloat16] [--memory tiled]
        [--platform cpu | --platform tpu --topology v5p:2x2x1 | --platform cuda
        --topology 1x1x1 --target-config FILE]

`vae-memory` prints the device memory of the full-size VAE, as the compiler plans it. Nothing runs
and no accelerator is needed: with `libtpu` or JAX's CUDA plugin installed, the compiler of a
described machine is asked (FILE is its GpuTargetConfigProto as text). Run it with
JAX_PLATFORMS=cpu.
"""

import argparse
from collections.abc import Iterator
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from tora2_jax.config import VAEConfig
from tora2_jax.errors import first_line
from tora2_jax.models.layers.basic import shape_rngs
from tora2_jax.models.vae.tiling import DEFAULT_TILES, VAEMemory, run_chunk, run_whole
from tora2_jax.models.vae.vae import CausalVAE, first_chunk
from tora2_jax.system.addresses import local_path

ROW = "{:9} {:9} {:8} {:13} {:>10} {:>8} {:>12} {:>7}"
HEADINGS = ("network", "dtype", "memory", "program", "arguments", "outputs", "temporaries", "total")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says, and the device that it describes; exits with 2 if it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("vae-memory", help="device memory of the VAE, as compiled")
    memory.set_defaults(run=vae_memory)
    memory.add_argument("--network", choices=("decoder", "encoder"), default="decoder")
    dtypes, settings = ("bfloat16", "float32"), get_args(VAEMemory)
    memory.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes)
    memory.add_argument("--memory", nargs="+", choices=settings, default=settings)
    memory.add_argument("--latents", nargs=3, type=int, default=(13, 60, 90), metavar="N")
    memory.add_argument("--platform", choices=("cpu", "tpu", "cuda"), default="cpu")
    memory.add_argument("--topology", help="of the machine, for tpu and cuda")
    memory.add_argument("--target-config", type=local_path, help="description of the GPU, for cuda")
    options = parser.parse_args(given)
    if faults := _faults(options):
        memory.error("; ".join(faults))
    try:
        options.device = _device(options)
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        memory.error(f"--platform {options.platform} cannot be described: {reason}")
    return options


def _faults(options: argparse.Namespace) -> list[str]:
    faults = []
    if min(options.latents) < 1:
        faults.append(f"--latents: {' '.join(map(str, options.latents))} must be positive")
    if options.platform != "cpu" and options.topology is None:
        example = {"tpu": "v5p:2x2x1", "cuda": "1x1x1"}[options.platform]
        faults.append(f"--topology: is needed for {options.platform}, such as {example}")
    if options.platform == "cuda":
        if options.target_config is None:
            faults.append("--target-config: is needed for cuda")
        elif not options.target_config.is_file():
            faults.append(f"--target-config: there is no file {options.target_config}")
    return faults


def vae_memory(options: argparse.Namespace) -> None:
    """Prints a table of gibibytes, one row per compiled program."""
    sharding = SingleDeviceSharding(options.device)
    print(ROW.format(*HEADINGS))
    for dtype in options.dtype:
        for memory in options.memory:
            for name, lowered in _programs(options, jnp.dtype(dtype), memory, sharding):
                sizes = lowered.compile().memory_analysis()
                parts = (
                    sizes.argument_size_in_bytes,
                    sizes.output_size_in_bytes,
                    sizes.temp_size_in_bytes,
                )
                total = sum(parts) - sizes.alias_size_in_bytes
                figures = [f"{size / 2**30:.2f}" for size in (*parts, total)]
                print(ROW.format(options.network, dtype, memory, name, *figures), flush=True)


def _device(options: argparse.Namespace) -> jax.Device:
    if options.platform == "cpu":
        return jax.devices("cpu")[0]
    if options.platform == "tpu":
        machine = topologies.get_topology_desc(options.topology, platform="tpu")
    else:
        machine = topologies.get_topology_desc(
            platform="cuda",
            topology=options.topology,
            target_config=options.target_config.read_text(),
        )
    return machine.devices[0]


def _programs(
    options: argparse.Namespace,
    dtype: jnp.dtype,
    memory: VAEMemory,
    sharding: SingleDeviceSharding,
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """The largest programs of a memory setting: those of whole tiles."""

    def placed(tree):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    config = VAEConfig()
    vae = nnx.eval_shape(lambda: CausalVAE(config, rngs=shape_rngs(), dtype=dtype))
    graph, state = nnx.split(getattr(vae, options.network))
    state = placed(state)
    frames, height, width = options.latents
    if memory == "tiled":
        height, width = min(height, DEFAULT_TILES.height), min(width, DEFAULT_TILES.width)
    size, features = vae.latents_per_chunk, config.latent_channels
    if options.network == "encoder":
        frames = (frames - 1) * config.temporal_compression + 1
        height, width = height * vae.spatial_compression, width * vae.spatial_compression
        size, features = vae.frames_per_chunk, 3

    def chunk(count: int) -> jax.ShapeDtypeStruct:
        return placed(jax.ShapeDtypeStruct((1, count, height, width, features), dtype))

    if memory == "whole":
        yield "all", run_whole.lower(graph, state, chunk(frames), size)
        return
    first = chunk(first_chunk(frames, size))
    yield "first chunk", run_chunk.lower(graph, state, first, None)
    cache = jax.eval_shape(lambda *inputs: run_chunk(graph, *inputs, None)[1], state, first)
    yield "later chunk", run_chunk.lower(graph, state, chunk(size), placed(cache))


if __name__ == "__main__":
    options = arguments()
    options.run(options)
