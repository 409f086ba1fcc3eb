"""How variables lie on a mesh at rest, by rules of their paths, and are gathered to be used."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from tora2_jax.parallel import mesh as parallel
from tora2_jax.parallel.mesh import FSDP, TENSOR

# Arrays of stacked layers, by their path in the model or, with "blocks." before it, in the layer.
_LAYER = r"(?:.*\.)?(?:blocks|layers|cross_attention)\.(?:.*\.)?"
# What is used a layer at a time, or a row at a time, is never gathered as a whole.
_USED_IN_PARTS = re.compile(rf"{_LAYER}.*|(?:.*\.)?token_embedding\.embedding")
_WIDENING = rf"{_LAYER}(?:query|key|value|feed_forward\.expand|mlp\.gate|mlp\.up|mlp_in)"
_NARROWING = rf"{_LAYER}(?:output|feed_forward\.project|mlp\.down|mlp_out)"
_FUSER_OUT = rf"{_LAYER}fuser\.(?:gamma|beta)_temporal"
# Path -> axes of an array's last dimensions; the first match counts. An axis that does not divide
# its dimension is left out; what no rule names lies whole on every device.
RULES = [
    (re.compile(pattern), axes)
    for pattern, axes in (
        (rf"{_WIDENING}\.kernel", (FSDP, TENSOR)),
        (rf"(?:{_WIDENING}|{_FUSER_OUT})\.bias", (TENSOR,)),
        (rf"{_NARROWING}\.kernel", (TENSOR, FSDP)),
        (rf"{_FUSER_OUT}\.kernel", (FSDP, TENSOR)),
        (rf"{_LAYER}kernel", (None, FSDP)),
        (r"(?:.*\.)?token_embedding\.embedding", (None, FSDP)),
        (r"(?:.*\.)?transformer\.positions", (None, FSDP)),
        (r"(?:vae|motion_vae|face|object)\..*kernel", (None, FSDP)),
    )
]


def spec_of(mesh: Any, path: str, shape: tuple[int, ...], *, whole: bool = False) -> P:
    """How a variable lies on a mesh.

    Args:
        mesh: concrete or abstract.
        path: of the variable, joined by dots.
        shape: of the variable; axes in front of those that a rule names are never cut.
        whole: as it is used and not as it rests: gathered over `fsdp`.
    """
    axes = next((axes for rule, axes in RULES if rule.fullmatch(path)), ())
    dimensions: list[str | None] = [None] * len(shape)
    for index, axis in zip(range(len(shape) - 1, -1, -1), reversed(axes), strict=False):
        if axis is not None and shape[index] % mesh.shape[axis] == 0:
            dimensions[index] = None if whole and axis == FSDP else axis
    return P(*dimensions)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding for every array of a tree, by the innermost dictionary key (a variable's path).

    So the moments of an optimizer and an average lie like the variables that they belong to.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return NamedSharding(mesh, spec_of(mesh, keys[-1] if keys else "", leaf.shape))

    return jax.tree_util.tree_map_with_path(one, tree)


def abstract(mesh: Mesh, tree: Any) -> Any:
    """The same tree as shapes with shardings (see `shardings`)."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(mesh, tree),
    )


def plan_at_rest(module: nnx.Module, mesh: Mesh | None = None) -> None:
    """Gives an abstract module's arrays the shardings of a mesh, by default of the context's."""
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    if mesh.empty:
        return
    planned = []
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))):
        leaf = variable.get_value()
        sharding = NamedSharding(mesh, spec_of(mesh, ".".join(map(str, path)), leaf.shape))
        leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        planned.append((path, variable.replace(leaf)))
    nnx.update(module, nnx.from_flat_state(planned))


def placed(array: Any, dtype: Any, like: Any) -> Array:
    """An array as a variable, where the variable's sharding says; `like` may be abstract.

    A sharding of a mesh that is not there says nothing.
    """
    sharding = getattr(like, "sharding", None)
    if (
        not isinstance(sharding, NamedSharding)
        or not isinstance(sharding.mesh, Mesh)
        or isinstance(array, jax.Array)
    ):
        return jax.numpy.asarray(array, dtype)
    array = np.asarray(array, dtype)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole(state: nnx.State) -> nnx.State:
    """Variables outside of stacked layers, gathered to be used; see `whole_layer` for those."""

    def gather(path: str, array: Array) -> Array:
        if _USED_IN_PARTS.fullmatch(path):
            return array
        return jax.lax.with_sharding_constraint(array, P())

    return state if parallel.current() is None else _mapped(gather, state)


def whole_layer(state: nnx.State) -> nnx.State:
    """The arrays of one layer, gathered over `fsdp` to be used; gradients go back as they rest."""
    mesh = parallel.current()
    if mesh is None:
        return state

    def gather(path: str, array: Array) -> Array:
        path = f"blocks.{path}"
        return _gather(
            array,
            spec_of(mesh, path, array.shape),
            spec_of(mesh, path, array.shape, whole=True),
        )

    return _mapped(gather, state)


def _mapped(change: Callable[[str, Array], Array], state: nnx.State) -> nnx.State:
    """Every array changed, given its path."""
    return nnx.from_flat_state(
        [
            (path, value.replace(change(".".join(map(str, path)), value.get_value())))
            for path, value in nnx.to_flat_state(state)
        ]
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(array: Array, resting: P, used: P) -> Array:
    return jax.lax.with_sharding_constraint(array, used)


_gather.defvjp(
    lambda array, resting, used: (_gather(array, resting, used), None),
    lambda resting, used, _, gradient: (jax.lax.with_sharding_constraint(gradient, resting),),
)
