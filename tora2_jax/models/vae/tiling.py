"""The causal VAE within bounded memory: chunk by chunk, and tile by tile, from a loop on the host.

`whole` is one compiled program (`CausalVAE.encode` and `decode`). `chunked` takes one video and
one chunk at a time, with equal results. `tiled` also cuts the picture into overlapping tiles that
are decoded apart and blended, as diffusers does; group norms then see one tile, so the numbers are
others. The device holds the parameters and what ONE chunk (of ONE tile) needs; all else is numpy.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax.config import VAEConfig
from tora2_jax.models.vae.layers import Cache
from tora2_jax.models.vae.vae import (
    LOG_VARIANCE_RANGE,
    CausalVAE,
    by_chunks,
    first_chunk,
)
from tora2_jax.parallel import placement
from tora2_jax.types import Array as AnyArray

VAEMemory = Literal["whole", "chunked", "tiled"]
Progress = Callable[[int, int], None]  # given how many parts are done, and all


def _stride(name: str, size: int, overlap: float) -> int:
    stride = size * (1 - overlap)
    if not 0 <= overlap < 1 or stride < 0.5 or abs(stride - round(stride)) > 1e-6:
        raise ValueError(
            f"tiles of {name} {size} with overlap_{name} {overlap:g} would lie {stride:g} latents "
            f"apart; make {name} * (1 - overlap_{name}) a whole number from 1 to {name}"
        )
    return round(stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How `tiled` cuts the picture; defaults are the published ones (240 x 360 pixels).

    Args:
        height: Rows of latents in a tile.
        width: Columns of latents in a tile.
        overlap_height: Fraction of a tile that is blended with the one above.
        overlap_width: Fraction of a tile that is blended with the one to the left.

    Raises:
        ValueError: if the tiles cannot be laid out on whole latents.
    """

    height: int = 30
    width: int = 45
    overlap_height: float = 1 / 6
    overlap_width: float = 1 / 5

    def __post_init__(self):
        _ = self.strides

    @property
    def strides(self) -> tuple[int, int]:
        """Latents from one tile to the next, down and across."""
        return (
            _stride("height", self.height, self.overlap_height),
            _stride("width", self.width, self.overlap_width),
        )


DEFAULT_TILES = Tiles()


def tiles_of(config: VAEConfig, compression: int) -> Tiles:
    """The tiles that diffusers takes for a VAE: half the height and width it was trained on.

    Raises:
        ValueError: if they cannot be laid out on whole latents.
    """
    return Tiles(
        height=config.sample_height // 2 // compression,
        width=config.sample_width // 2 // compression,
    )


def least_memory(config: VAEConfig, compression: int) -> VAEMemory:
    """`tiled` where diffusers' tiles can be laid out, otherwise `chunked`."""
    try:
        tiles_of(config, compression)
    except ValueError:
        return "chunked"
    return "tiled"


class HostPosterior(NamedTuple):
    """A `Posterior` in host memory, float32."""

    mean: Float[np.ndarray, "b t_lat h_lat w_lat latent"]
    log_variance: Float[np.ndarray, "b t_lat h_lat w_lat latent"]


class _Axis(NamedTuple):
    """Tiles along the height or the width, in what the network reads and in what it writes."""

    size: int  # read
    stride: int  # read
    kept: int  # written: what the next tile does not cover
    blended: int  # written


def encode(
    vae: CausalVAE,
    video: Float[AnyArray, "b f height width 3"],
    memory: VAEMemory | str = "whole",
    tiles: Tiles = DEFAULT_TILES,
) -> HostPosterior:
    """The posterior of a video in [-1, 1], as numpy arrays in float32.

    Args:
        vae: Its parameters stay where they are; calls with equal shapes share their compilation.
        video: Best in numpy: the device then never holds all of it, except for `whole`.
        memory: See the module; `tiled` is `chunked` for videos that fit into one tile.
        tiles: Only for `tiled`.

    Raises:
        ValueError: if the memory setting is unknown or the size does not fit the compression.
    """
    compression = vae.spatial_compression
    if any(side % compression for side in video.shape[2:4]):
        height, width = video.shape[2:4]
        raise ValueError(
            f"a video of {height} x {width} pixels cannot be encoded: make both sides multiples "
            f"of {compression}"
        )
    axes = _axes(tiles, read=compression, written=1)
    moments = _run(vae, vae.encoder, video, vae.frames_per_chunk, memory, axes)
    mean, log_variance = np.split(moments, 2, axis=-1)
    return HostPosterior(mean, np.clip(log_variance, *LOG_VARIANCE_RANGE))


def decode(
    vae: CausalVAE,
    latents: Float[AnyArray, "b t_lat h_lat w_lat latent"],
    memory: VAEMemory | str = "whole",
    tiles: Tiles = DEFAULT_TILES,
    progress: Progress | None = None,
) -> Float[np.ndarray, "b f height width 3"]:
    """The video of unscaled latents, about [-1, 1], not clamped; numpy in float32.

    Args:
        vae: Its parameters stay where they are; calls with equal shapes share their compilation.
        latents: In numpy or on the device.
        memory: See the module; `tiled` is `chunked` for latents that fit into one tile.
        tiles: Only for `tiled`.
        progress: Called with (parts done, parts) from 0 on: chunks of tiles; `whole` is one part.

    Raises:
        ValueError: if the memory setting is unknown.
    """
    axes = _axes(tiles, read=1, written=vae.spatial_compression)
    return _run(vae, vae.decoder, latents, vae.latents_per_chunk, memory, axes, progress)


def encode_latents(
    vae: CausalVAE,
    video: Float[AnyArray, "b f height width 3"],
    memory: VAEMemory | str = "whole",
    tiles: Tiles = DEFAULT_TILES,
) -> Float[np.ndarray, "b t_lat h_lat w_lat latent"]:
    """The posterior's mode, scaled to the diffusion's unit variance. See `encode`."""
    return encode(vae, video, memory, tiles).mean * np.float32(vae.scaling_factor)


def decode_latents(
    vae: CausalVAE,
    latents: Float[AnyArray, "b t_lat h_lat w_lat latent"],
    memory: VAEMemory | str = "whole",
    tiles: Tiles = DEFAULT_TILES,
    progress: Progress | None = None,
) -> Float[np.ndarray, "b f height width 3"]:
    """The video of the diffusion's latents, about [-1, 1], not clamped. See `decode`."""
    return decode(vae, latents / vae.scaling_factor, memory, tiles, progress)


@partial(jax.jit, static_argnames=("graph", "size"))
def run_whole(graph: nnx.GraphDef, state: nnx.State, x: Array, size: int) -> Array:
    """The encoder or decoder `(graph, state)` over all chunks of x, one program."""
    return by_chunks(nnx.merge(graph, placement.whole(state)), x, size)


@partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def run_chunk(
    graph: nnx.GraphDef, state: nnx.State, chunk: Array, cache: Cache | None
) -> tuple[Array, Cache]:
    """The encoder or decoder `(graph, state)` over one chunk; the cache given is used up."""
    return nnx.merge(graph, placement.whole(state))(chunk, cache)


def _run(
    vae: CausalVAE,
    network: nnx.Module,
    x: Float[AnyArray, "b f height width c"],
    size: int,
    memory: VAEMemory | str,
    axes: tuple[_Axis, _Axis],
    progress: Progress | None = None,
) -> np.ndarray:
    """The encoder or decoder over x in chunks of `size` frames, as `memory` says."""
    if memory not in get_args(VAEMemory):
        known = ", ".join(get_args(VAEMemory))
        raise ValueError(f"unknown memory setting {memory!r}; it is one of: {known}")
    graph, state = nnx.split(network)
    if memory == "whole":
        count = _counter(1, progress)
        whole = run_whole(graph, state, jnp.asarray(x, vae.dtype), size)
        return count(np.asarray(whole, np.float32))
    values = np.asarray(x)
    batch, frames = values.shape[:2]
    chunks = list(pairwise([0, *range(first_chunk(frames, size), frames + 1, size)]))
    fits = all(length <= axis.size for length, axis in zip(values.shape[2:4], axes, strict=True))
    in_tiles = memory == "tiled" and not fits
    tiles = math.prod(len(_starts(values.shape[2 + i], axes[i])) for i in (0, 1)) if in_tiles else 1
    count = _counter(batch * tiles * len(chunks), progress)

    def chunked(x: np.ndarray) -> np.ndarray:
        past, done = None, []
        for start, end in chunks:
            output, past = run_chunk(graph, state, jnp.asarray(x[:, start:end], vae.dtype), past)
            done.append(count(np.asarray(output, np.float32)))
        return np.concatenate(done, axis=1)

    run = partial(_tiled, chunked, axes=axes) if in_tiles else chunked
    return np.concatenate([run(values[item : item + 1]) for item in range(batch)])


def _counter(total: int, progress: Progress | None) -> Callable[[np.ndarray], np.ndarray]:
    """Tells `progress` of 0 parts, and of one more whenever it is given one; returns that part."""
    done = itertools.count()

    def tell() -> None:
        if progress is not None:
            progress(next(done), total)

    def count(part: np.ndarray) -> np.ndarray:
        tell()
        return part

    tell()
    return count


def _starts(length: int, axis: _Axis) -> range:
    """Where the tiles begin along one side."""
    return range(0, length, axis.stride)


def _tiled(
    run: Callable[[np.ndarray], np.ndarray], x: np.ndarray, axes: tuple[_Axis, _Axis]
) -> np.ndarray:
    """`run` over overlapping tiles of x, blended.

    A tile is blended with what blending has made of the tiles above and left of it, corners
    included, so tiles must come row by row.
    """
    down, across = axes
    above: dict[int, np.ndarray] = {}
    rows = []
    for top in _starts(x.shape[2], down):
        left, row = None, []
        for start in _starts(x.shape[3], across):
            tile = run(x[:, :, top : top + down.size, start : start + across.size])
            if start in above:
                _blend(above[start], tile, 2, down.blended)
            if left is not None:
                _blend(left, tile, 3, across.blended)
            above[start] = left = tile
            row.append(tile[:, :, : down.kept, : across.kept])
        rows.append(np.concatenate(row, axis=3))
    return np.concatenate(rows, axis=2)


def _blend(before: np.ndarray, tile: np.ndarray, axis: int, extent: int) -> None:
    """Fade in place from the end of `before` to the start of `tile`, linearly."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    end = np.moveaxis(before, axis, -1)[..., before.shape[axis] - extent :]
    start = np.moveaxis(tile, axis, -1)[..., :extent]
    weight = np.arange(extent, dtype=np.float32) / extent
    start[...] = end * (1 - weight) + start * weight


def _axes(tiles: Tiles, read: int, written: int) -> tuple[_Axis, _Axis]:
    """Both axes for a network that reads and writes so many values per latent."""
    sizes = (tiles.height, tiles.width)
    down, across = (
        _Axis(size * read, stride * read, stride * written, (size - stride) * written)
        for size, stride in zip(sizes, tiles.strides, strict=True)
    )
    return down, across
