"""Small parts that networks share: linear maps, norms, positions, patches, stacks, names."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from tora2_jax import parallel
from tora2_jax.parallel import placement

STREAM, ATTENTION = "stream", "attention"  # names of values that a policy may keep
_STACKED = "stacked"  # metadata of a variable whose leading axis counts layers
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names(ATTENTION),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[STREAM, ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
LECUN_NORMAL = nnx.initializers.lecun_normal()
ZEROS = nnx.initializers.zeros_init()


class Buffer(nnx.Variable):
    """A constant that belongs to a model and its checkpoint but is never trained."""


class Linear(nnx.Linear):
    """`y = x @ kernel + bias` over the last axis, `[..., in] -> [..., out]`.

    All leading axes are flattened to one before the product: with several of them XLA's CPU
    back end computes the gradient of the kernel at half the speed. Not where a stream is cut along
    its positions, because that cut cannot be told of the flat axis.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = LECUN_NORMAL,
        bias_init: nnx.Initializer = ZEROS,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if out_sharding is not None or parallel.sequence_shards() > 1:
            return super().__call__(inputs, out_sharding)
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], flat.shape[-1])


class LayerNorm(nnx.LayerNorm):
    """Layer normalization over the last axis, statistics in float32 (two passes)."""

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        use_scale: bool = True,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(
            features,
            epsilon=eps,
            use_scale=use_scale,
            use_bias=use_bias,
            use_fast_variance=False,
            dtype=dtype,
            rngs=rngs,
        )


class TimestepEmbedding(nnx.Module):
    """Two float32 linear maps with SiLU between, `[b, in] -> [b, out]`."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.expand = Linear(in_features, out_features, rngs=rngs)
        self.project = Linear(out_features, out_features, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.project(jax.nn.silu(self.expand(inputs)))


def sinusoid(values: jax.Array, width: int) -> jax.Array:
    """Cosines, then sines, of `values` at `width // 2` frequencies from 1 down to 1e-4.

    The frequencies are rounded where diffusers rounds them: at timestep 999 one unit in the last
    place of a frequency is 6e-5 of angle.
    """
    exponents = np.float32(-math.log(10000)) * np.arange(width // 2, dtype=np.float32)
    frequencies = np.exp((exponents / np.float32(width // 2)).astype(np.float64))
    angles = jnp.asarray(values, jnp.float32)[:, None] * frequencies.astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _on_grid(tables: list[np.ndarray]) -> jax.Array:
    """`[t, x], [h, y], [w, z] -> [t*h*w, x+y+z]`; only the small tables become constants."""
    grid = tuple(len(table) for table in tables)
    spread = []
    for axis, table in enumerate(tables):
        shape = [1, 1, 1, table.shape[1]]
        shape[axis] = grid[axis]
        spread.append(jnp.broadcast_to(table.reshape(shape), (*grid, table.shape[1])))
    return jnp.concatenate(spread, axis=-1).reshape(math.prod(grid), -1)


def rotary_tables(
    coordinates: tuple[np.ndarray, np.ndarray, np.ndarray], head_dim: int
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of CogVideoX's 3D rotary embedding, float32 `[t*h*w, head_dim / 2]` each.

    Args:
        coordinates: positions of the token frames, rows and columns.
        head_dim: channels of a head, a multiple of 8; a quarter is for time.
    """
    widths = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    angles = []
    for positions, width in zip(coordinates, widths, strict=True):
        frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
        angles.append(np.outer(positions, frequencies))
    cosines = _on_grid([np.cos(angle).astype(np.float32) for angle in angles])
    return cosines, _on_grid([np.sin(angle).astype(np.float32) for angle in angles])


def rotate(inputs: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns neighboring channel pairs of `[b, n, heads, d]` by the angles of `rotary_tables`."""
    cosines, sines = (table[None, :, None, :] for table in tables)
    pairs = inputs.astype(jnp.float32).reshape(*inputs.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.stack(turned, axis=-1).reshape(inputs.shape).astype(inputs.dtype)


def sincos_table(coordinates: tuple[np.ndarray, np.ndarray, np.ndarray], width: int) -> jax.Array:
    """CogVideoX-2B's fixed positions, float32 `[t*h*w, width]`: a quarter time, columns, rows.

    Args:
        coordinates: positions of the token frames, rows and columns.
        width: channels, a multiple of 16.
    """
    tables = []
    for positions, part in zip(
        coordinates, (width // 4, width // 8 * 3, width // 8 * 3), strict=True
    ):
        angles = np.outer(positions, 10000.0 ** (-np.arange(part // 2) / (part // 2)))
        tables.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
    time, rows, columns = tables
    grid = _on_grid([time, rows, columns])
    time_part, row_part, column_part = jnp.split(
        grid, [time.shape[1], time.shape[1] + rows.shape[1]], axis=1
    )
    return jnp.concatenate([time_part, column_part, row_part], axis=1)


def patchify(latents: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
    """`[b, t_lat, h_lat, w_lat, c] -> [b, n, features]`; features are (channel, t, row, column)."""
    batch, *size, channels = latents.shape
    (t, h, w), (t_lat, h_lat, w_lat) = grid, size
    patches = latents.reshape(batch, t, t_lat // t, h, h_lat // h, w, w_lat // w, channels)
    return patches.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, t * h * w, -1)


def unpatchify(
    tokens: jax.Array, grid: tuple[int, int, int], patch: int, patch_t: int
) -> jax.Array:
    """The inverse of `patchify`."""
    batch, (t, h, w) = len(tokens), grid
    patches = tokens.reshape(batch, t, h, w, -1, patch_t, patch, patch)
    latents = patches.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return latents.reshape(batch, t * patch_t, h * patch, w * patch, -1)


class _OneKey(nnx.RngStream):
    """Gives the same key again and again."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def shape_rngs() -> nnx.Rngs:
    """Random streams for `nnx.eval_shape`, where no number is made: all keys are the same.

    To count them takes half of the time there: flax asks every new count for its sharding, and JAX
    makes a long message of why it has none (flax 0.12.8, jax 0.10.2).
    """
    rngs = nnx.Rngs(0)
    # Flax says of streams only that they can be read by their names.
    rngs.default = _OneKey(0, tag="default")  # type: ignore[attr-defined]
    return rngs


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules made by `make`, as one whose arrays have a leading layer axis.

    Args:
        make: builds one layer from its own random streams.
        count: number of layers, at least 1.
        rngs: streams that are split, one part per layer.
    """

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_all(layer_rngs: nnx.Rngs) -> nnx.Module:
        return make(layer_rngs)

    stacked = make_all(rngs)
    for variable in jax.tree.leaves(nnx.state(stacked), is_leaf=_is_variable):
        variable.set_metadata(**{_STACKED: True})
    return stacked


def stacked_paths(module: nnx.Module) -> frozenset[str]:
    """Paths, joined by dots, of the variables whose leading axis counts layers (see `stack`)."""
    return frozenset(
        ".".join(map(str, path))
        for path, variable in nnx.to_flat_state(nnx.state(module))
        if variable.get_metadata().get(_STACKED, False)
    )


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def scan(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    blocks: Any,
    carry: Any,
    xs: Any = None,
    rematerialize: str = "none",
    unroll: bool = False,
) -> tuple[Any, Any]:
    """Applies stacked layers one after another; the layers are read, never written.

    Args:
        step: `(block, carry, x) -> (carry, y)`.
        blocks: a module from `stack`, or a tuple of such modules of equal length.
        carry: what goes from layer to layer; its structure, shapes and types stay the same.
        xs: arrays with a leading layer axis, one slice per layer.
        rematerialize: what the backward pass does with the values of a layer: `none` keeps all;
            `full` keeps what comes in and makes the rest again; `save_attention` keeps the
            attention's output as well; `offload` keeps both, in the host's memory.
        unroll: the layers stand one after another in the program; a loop otherwise.

    Returns:
        The last carry, and all `y` along a new leading layer axis.
    """
    graph, state = nnx.split(blocks)

    def body(carry, slices):
        layer_state, x = slices
        return step(nnx.merge(graph, placement.whole_layer(layer_state)), carry, x)

    if rematerialize != "none":
        policy = _POLICIES[rematerialize]
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)


def map_arrays(function: Callable[[jax.Array], jax.Array], module: Any) -> Any:
    """The same module with `function` applied to each of its arrays, such as a slice of a stack."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(function, state))


def _variables(module: nnx.Module | nnx.State) -> dict[tuple, nnx.Variable]:
    state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
    return dict(state)


def _name(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def flat_variables(module: nnx.Module | nnx.State) -> dict[str, Any]:
    """Every array of a module (parameters, statistics, buffers) by its path, joined by dots.

    The values of an abstract module (`nnx.eval_shape`) are `jax.ShapeDtypeStruct`.
    """
    return {_name(path): value.get_value() for path, value in _variables(module).items()}


def assign_variables(module: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Replaces every array of a module, keeping each one's dtype.

    Args:
        module: concrete or abstract; abstract becomes concrete.
        arrays: exactly the paths of `flat_variables`, with the same shapes.

    Raises:
        ValueError: lists every missing, unknown and misshapen path.
    """
    variables = _variables(module)
    names = {_name(path): path for path in variables}
    problems = [f"missing: {name}" for name in names if name not in arrays]
    problems += [f"unknown: {name}" for name in arrays if name not in names]
    for name in names.keys() & arrays.keys():
        expected, found = variables[names[name]].get_value().shape, np.shape(arrays[name])
        if tuple(expected) != tuple(found):
            problems.append(f"shape of {name}: {tuple(found)} instead of {tuple(expected)}")
    if problems:
        listing = "\n  ".join(sorted(problems))
        raise ValueError(f"{type(module).__name__} cannot take these arrays:\n  {listing}")
    update_variables(module, arrays)


def update_variables(
    module: nnx.Module, arrays: Mapping[str, Any], *, keep_dtypes: bool = True
) -> None:
    """Replaces the arrays at these paths; the others stay as they are.

    Paths and shapes must fit (see `assign_variables` for the checks). Where an array of the module
    says how it lies on a mesh, the new one lies so. `keep_dtypes` casts to the
    dtypes that the module has; otherwise it takes the ones given.
    """
    variables = {_name(path): (path, value) for path, value in _variables(module).items()}
    new = {}
    for name, array in arrays.items():
        path, variable = variables[name]
        own = variable.get_value()
        new[path] = variable.replace(
            placement.placed(array, own.dtype if keep_dtypes else None, own)
        )
    nnx.update(module, nnx.from_flat_state(new))
