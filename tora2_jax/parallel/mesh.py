"""Where arrays lie on the devices: the mesh, and what crosses devices.

The only file that names mesh axes, with `placement`, the rules for variables. Models call functions
that say what an array is (a stream, a feature axis that may be cut, a small array that every device
has); without a mesh they change nothing. The axes, what each costs and how to choose them:
docs/sharding.md.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Shaped

from tora2_jax.config.train import MeshConfig
from tora2_jax.errors import TrainError

DATA, FSDP, SEQUENCE, TENSOR = AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = (DATA, FSDP)


def make_mesh(sizes: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh of the axes `data, fsdp, sequence, tensor`.

    Args:
        sizes: One of them may be -1 and takes the devices that are left.
        devices: Default: all. A mesh of one process may be smaller and takes the first ones.

    Raises:
        TrainError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = [getattr(sizes, axis) for axis in AXES]
    written = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise TrainError(f"config.mesh ({written}): sizes are positive; one may be -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        if len(devices) % known:
            raise TrainError(f"config.mesh ({written}): {len(devices)} devices cannot be shared so")
        shape[shape.index(-1)] = len(devices) // known
    count = math.prod(shape)
    several = len({device.process_index for device in devices}) > 1
    if count > len(devices) or (several and count < len(devices)):
        raise TrainError(f"config.mesh ({written}): needs {count} devices of {len(devices)}")
    types = (AxisType.Auto,) * len(AXES)
    # Splitting: fsdp=16, sequence=4 on a torus of 8 x 8.
    try:
        placed = mesh_utils.create_device_mesh(
            shape, devices[:count], allow_split_physical_axes=True
        )
    except (NotImplementedError, ValueError) as error:  # the topology of these devices
        raise TrainError(f"config.mesh ({written}): {error}") from error
    return Mesh(placed, AXES, axis_types=types)


def written(mesh: Mesh) -> str:
    """The sizes of its axes, such as `data=1 fsdp=8 sequence=1 tensor=1`."""
    return " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def use(mesh: Mesh):
    """Context in which programs are traced for a mesh and run on it."""
    return jax.set_mesh(mesh)


def use_abstractly(mesh: Mesh):
    """Context in which programs are traced for a mesh whose devices may not be here."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current() -> Any:
    """The mesh of the context, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or SEQUENCE not in mesh.shape else mesh


def platform() -> str:
    """Of the devices that the program being traced is for, which may not be here."""
    mesh = current()
    device = None if mesh is None else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def sequence_shards() -> int:
    """Into how many parts the stream is cut."""
    mesh = current()
    return 1 if mesh is None else mesh.shape[SEQUENCE]


def padded(length: int) -> int:
    """The next length that can be cut into equal parts of the stream."""
    return length + -length % sequence_shards()


# Batches


def _batch_axes(mesh: Any, size: int) -> tuple[str, ...] | None:
    """The axes that a batch is cut over: as many of them as divide it."""
    for axes in (BATCH, (DATA,), (FSDP,)):
        if size % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return axes
    return None


def batch_shards(mesh: Any) -> int:
    """Into how many parts a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh, size: int) -> NamedSharding:
    """How arrays with that many samples lie on a mesh."""
    return NamedSharding(mesh, P(_batch_axes(mesh, size)))


def batch(tree: Any, axis: int = 0) -> Any:
    """Arrays whose axis counts samples, cut along it and along no other."""
    mesh = current()
    if mesh is None:
        return tree

    def one(array: Array) -> Array:
        spec = P(*[None] * axis, _batch_axes(mesh, array.shape[axis]))
        return jax.lax.with_sharding_constraint(array, spec)

    return jax.tree.map(one, tree)


def texts(states: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
    """States of texts, cut into whole samples: what is sent between devices is then the weights.

    Where they are too few (the one text of no caption), the compiler decides: it may keep the
    weights in parts and send the states.
    """
    mesh = current()
    whole = mesh is None or states.shape[0] % batch_shards(mesh)
    return states if whole else batch(states)


def images(pictures: Float[Array, "n height width 3"]) -> Float[Array, "n height width 3"]:
    """Pictures that nothing connects, cut over as many devices as divide their number."""
    mesh = current()
    if mesh is None:
        return pictures
    axes: tuple[str, ...] = ()
    for axis in (DATA, FSDP, SEQUENCE):
        if pictures.shape[0] % math.prod(mesh.shape[name] for name in (*axes, axis)) == 0:
            axes = (*axes, axis)
    return jax.lax.with_sharding_constraint(pictures, P(axes))


def batch_rows(mesh: Mesh, size: int, process: int | None = None) -> np.ndarray:
    """Which samples of each batch a process has to make, in order.

    On a torus its devices may hold samples that are no neighbors. Processes whose devices share
    the same samples make the same.

    Args:
        mesh: Of all processes.
        size: Samples of a batch.
        process: Default: this one.
    """
    process = jax.process_index() if process is None else process
    held = [
        np.arange(size)[index]
        for device, index in batch_sharding(mesh, size).devices_indices_map((size,)).items()
        # jaxlib's stub does not say what a device is.
        if device.process_index == process  # type: ignore[attr-defined]
    ]
    return np.unique(held)


def global_batch(mesh: Mesh, size: int, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's samples of a batch (see `batch_rows`) -> arrays over all processes."""
    rows, sharding = batch_rows(mesh, size), batch_sharding(mesh, size)

    def one(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX asks for what lies on devices of this process only
            return array[np.searchsorted(rows, np.arange(size)[index[0]])]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)

    return {name: one(np.asarray(array)) for name, array in local.items()}


# Pictures


def picture(video: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    """Frames of a video: samples are cut, and rows over the axes that no samples are cut over.

    What looks beyond its rows, as a convolution does, is given its neighbors' by the compiler. The
    rows must be a multiple of the parts, see `row_parts`.
    """
    mesh = current()
    if mesh is None:
        return video
    samples = _batch_axes(mesh, video.shape[0])
    return jax.lax.with_sharding_constraint(video, P(samples, None, _row_axes(mesh, samples)))


def row_parts(batch: int) -> int:
    """Into how many parts `picture` cuts the rows of so many samples."""
    mesh = current()
    if mesh is None:
        return 1
    return math.prod(mesh.shape[axis] for axis in _row_axes(mesh, _batch_axes(mesh, batch)))


def _row_axes(mesh: Any, samples: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(axis for axis in AXES if axis not in (samples or ()) and mesh.shape[axis] > 1)


# The stream


def stream(tokens: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Tokens with all their channels: samples and positions are cut."""
    return _constrain(tokens, 1)


def wide(features: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Tokens between two linear maps: samples, positions and channels are cut."""
    return _constrain(features, 1, -1)


def positions(table: Shaped[Array, "n c"]) -> Shaped[Array, "n c"]:
    """A table with one row per position of the stream."""
    return _constrain(table, 0, batch_axis=None)


def _constrain(
    array: Array, sequence: int, tensor: int | None = None, batch_axis: int | None = 0
) -> Array:
    mesh = current()
    if mesh is None:
        return array
    axes: list[Any] = [None] * array.ndim
    if batch_axis is not None:
        axes[batch_axis] = _batch_axes(mesh, array.shape[batch_axis])
    axes[sequence] = SEQUENCE
    if tensor is not None and array.shape[tensor] % mesh.shape[TENSOR] == 0:
        axes[tensor] = TENSOR
    return jax.lax.with_sharding_constraint(array, P(*axes))


def windows(array: Float[Array, "b m u"], length: int, margin: int) -> Float[Array, "b shards n u"]:
    """What every part of the stream sees of a small array that each device has whole.

    Args:
        array: `m = length + margin` rows.
        length: positions of the stream.
        margin: rows that a part sees beyond its own.

    Returns:
        Part s has the rows `s * n0 .. (s + 1) * n0 + margin`, where `n0 = length / shards`.
    """
    mesh, shards = current(), sequence_shards()
    step = length // shards
    if mesh is None:
        return array[:, None, : step + margin]

    def cut(array: Array) -> Array:
        start = jax.lax.axis_index(SEQUENCE) * step
        return jax.lax.dynamic_slice_in_dim(array, start, step + margin, axis=1)[:, None]

    samples = _batch_axes(mesh, array.shape[0])
    return jax.shard_map(cut, in_specs=P(samples), out_specs=P(samples, SEQUENCE))(array)


Attend = Callable[..., Array]  # (query, key, value, mask=None) -> output, see models/attention.py


def self_attention(
    attend: Attend,
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b n heads d"],
    value: Float[Array, "b n heads d"],
    length: int,
) -> Float[Array, "b n heads d"]:
    """Attention of the stream to itself; what stands behind `length` is seen by nobody.

    Where the heads can be cut among the parts of the stream, each device has all positions of some
    heads (all-to-all, as DeepSpeed-Ulysses); otherwise it gathers keys and values.
    """
    mesh = current()
    if mesh is None:
        return attend(query, key, value)
    spec, shards = _head_spec(mesh, query.shape), mesh.shape[SEQUENCE]

    def gathered(query: Array, key: Array, value: Array) -> Array:
        key, value = (jax.lax.all_gather(x, SEQUENCE, axis=1, tiled=True) for x in (key, value))
        return attend(query, key[:, :length], value[:, :length])

    def exchanged(*arrays: Array) -> Array:
        swap = partial(jax.lax.all_to_all, axis_name=SEQUENCE, tiled=True)
        whole = (swap(x, split_axis=2, concat_axis=1)[:, :length] for x in arrays)
        output = attend(*whole)
        padding = [(0, 0)] * output.ndim
        padding[1] = (0, query.shape[1] - length)
        return swap(jax.numpy.pad(output, padding), split_axis=1, concat_axis=2)

    heads = query.shape[2] // (mesh.shape[TENSOR] if spec[2] else 1)
    inside = exchanged if heads % shards == 0 else gathered
    return jax.shard_map(inside, in_specs=(spec, spec, spec), out_specs=spec)(query, key, value)


def cross_attention(
    attend: Attend,
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b j heads d"],
    value: Float[Array, "b j heads d"],
    mask: Bool[Array, "b j"],
) -> Float[Array, "b n heads d"]:
    """Attention of the stream to a few keys, which every part of it has: nothing is exchanged."""
    mesh = current()
    if mesh is None:
        return attend(query, key, value, mask[:, None, None, :])
    spec = _head_spec(mesh, query.shape)
    keys = P(spec[0], None, spec[2], None)
    return jax.shard_map(
        lambda query, key, value, mask: attend(query, key, value, mask[:, None, None, :]),
        in_specs=(spec, keys, keys, P(spec[0])),
        out_specs=spec,
    )(query, key, value, mask)


def _head_spec(mesh: Any, shape: tuple[int, ...]) -> P:
    """Of `[b, n, heads, d]`."""
    heads = TENSOR if shape[2] % mesh.shape[TENSOR] == 0 else None
    return P(_batch_axes(mesh, shape[0]), SEQUENCE, heads, None)
