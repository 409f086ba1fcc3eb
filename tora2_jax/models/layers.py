"""Small parts that every network shares: linear maps, norms, stacks of layers, names of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Buffer(nnx.Variable):
    """A constant that belongs to a model and its checkpoint but is never trained."""


class Linear(nnx.Linear):
    """`y = x @ kernel + bias` over the last axis, `[..., in] -> [..., out]`.

    All leading axes are flattened to one before the product: with several of them XLA's CPU
    back end computes the gradient of the kernel at half the speed.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
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

    def __call__(self, inputs: jax.Array) -> jax.Array:
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], flat.shape[-1])


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis, statistics in float32 (two passes)."""

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        use_scale: bool = True,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
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

    return make_all(rngs)


def scan(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    blocks: Any,
    carry: Any,
    xs: Any = None,
    rematerialize: bool = False,
) -> tuple[Any, Any]:
    """Applies stacked layers one after another; the layers are read, never written.

    Args:
        step: `(block, carry, x) -> (carry, y)`.
        blocks: a module from `stack`, or a tuple of such modules of equal length.
        carry: what goes from layer to layer; its structure, shapes and types stay the same.
        xs: arrays with a leading layer axis, one slice per layer.
        rematerialize: recompute a layer in the backward pass instead of keeping its values.

    Returns:
        The last carry, and all `y` along a new leading layer axis.
    """
    graph, state = nnx.split(blocks)

    def body(carry, slices):
        layer_state, x = slices
        return step(nnx.merge(graph, layer_state), carry, x)

    if rematerialize:
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, carry, (state, xs))


def map_arrays(function: Callable[[jax.Array], jax.Array], module: Any) -> Any:
    """The same module with `function` applied to each of its arrays, such as a slice of a stack."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(function, state))


def _variables(module: nnx.Module) -> dict[tuple, nnx.Variable]:
    state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
    return dict(state)


def _name(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def flat_variables(module: nnx.Module) -> dict[str, Any]:
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
    new = {
        path: variables[path].replace(jnp.asarray(arrays[name], variables[path].get_value().dtype))
        for name, path in names.items()
    }
    nnx.update(module, nnx.from_flat_state(new))
