"""The causal VAE's layers: convolutions that remember two frames, group norms, resizing in time."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tora2_jax import parallel

OUTER_NORM_EPS = 1e-6  # fixed in the published model, unlike the encoder's resnet norms
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Cache = tuple[Float[Array, "b 2 _ _ _"], ...]


class Memory:
    """What the layers of a chunk share: frames of the chunk before, and where the picture ends.

    Args:
        previous: Last two input frames of every causal convolution, in the order they run; None
            before the first chunk.
        rows: Rows of the picture and rows with the padding below it, in any resolution; None
            without padding. No layer sees what stands in the padding.
    """

    def __init__(self, previous: Cache | None = None, rows: tuple[int, int] | None = None):
        self._previous = None if previous is None else iter(previous)
        self._rows = rows
        self._written: list[Array] = []

    def extend(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f+2 h w c"]:
        """Prepend the two frames before this chunk; its first frame twice where there are none."""
        x = self.cleared(x)
        before = jnp.repeat(x[:, :1], 2, axis=1) if self._previous is None else next(self._previous)
        joined = jnp.concatenate([before, x], axis=1)
        self._written.append(joined[:, -2:])
        return joined

    def for_next_chunk(self) -> Cache:
        """The cache to build the next chunk's memory from."""
        return tuple(self._written)

    def cleared(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """With zeros below the picture, as a convolution has them around it."""
        if self._rows is None:
            return x
        inside = jnp.arange(x.shape[2]) < _filled(x, self._rows)
        return jnp.where(inside[:, None, None], x, 0)

    def mean(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b c"]:
        """Over all pixels of the picture."""
        if self._rows is None:
            return x.mean(axis=(1, 2, 3))
        count = x.shape[1] * _filled(x, self._rows) * x.shape[3]
        return self.cleared(x).sum(axis=(1, 2, 3)) / count


def _filled(x: Float[Array, "b f h w c"], rows: tuple[int, int]) -> int:
    """Rows of the picture in `x`; `rows` as of `Memory`."""
    filled, all_rows = rows
    return x.shape[2] * filled // all_rows


def _plain_convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def _native_kernel_gradient(x: Array, gradient: Array, size: tuple[int, int]) -> Array:
    shape = (*size, x.shape[-1], gradient.shape[-1])
    zeros = jnp.zeros(shape, x.dtype)
    return jax.vjp(lambda kernel: _plain_convolve(x, kernel), zeros)[1](gradient)[0]


def _kernel_gradient_by_image(x: Array, gradient: Array, size: tuple[int, int]) -> Array:
    """One matmul per image: on CPU three times faster than a convolution with a huge kernel."""
    _, height, width, features = x.shape
    rows, columns = size
    shifts = [(i, j) for i in reversed(range(rows)) for j in reversed(range(columns))]

    def add(total, image):
        pixels, gradients = image
        padding = ((rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
        padded = jnp.pad(gradients, padding)
        shifted = [padded[i : i + height, j : j + width] for i, j in shifts]
        taps = jnp.concatenate(shifted, axis=-1).reshape(height * width, -1)
        return total + pixels.reshape(height * width, features).T @ taps, None

    total = jnp.zeros((features, rows * columns * gradient.shape[-1]), x.dtype)
    total = jax.lax.scan(add, total, (x, gradient))[0]
    return total.reshape(features, rows, columns, -1).transpose(1, 2, 0, 3)


@jax.custom_vjp
def convolve(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"]) -> Array:
    """2-D convolution with odd kernel and zero padding; the size stays."""
    return _plain_convolve(x, kernel)


def _convolve_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _plain_convolve(x, kernel), (x, kernel)


def _convolve_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # Written out: JAX's own names the kernel's axes in another order, for which XLA's CPU back end
    # has loops several times slower than its matmuls.
    turned = jax.lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    input_gradient = _plain_convolve(gradient, turned)
    rows, columns = kernel.shape[:2]
    size = (rows, columns)
    kernel_gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=partial(_kernel_gradient_by_image, size=size),
        default=partial(_native_kernel_gradient, size=size),
    )
    return input_gradient, kernel_gradient


convolve.defvjp(_convolve_forward, _convolve_backward)


def _frames_on_channels(joined: Array, kernel: Array) -> Array:
    """Three frames concatenated on channels, one 2-D convolution: on CPU twice as fast as 3-D."""
    b, frames, height, width, _ = joined.shape
    frames -= 2
    taps = jnp.concatenate([joined[:, tap : tap + frames] for tap in range(3)], axis=-1)
    kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, taps.shape[-1], -1)
    y = convolve(taps.reshape(b * frames, height, width, -1), kernel)
    return y.reshape(b, frames, height, width, -1)


def native_causal(joined: Array, kernel: Array) -> Array:
    """A 3-D convolution: on accelerators nothing as large as three activations is written."""
    padding = ((0, 0), (1, 1), (1, 1))
    dimensions = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(
        joined, kernel, (1, 1, 1), padding, dimension_numbers=dimensions
    )


def _causal_gradients(run: Callable) -> Callable:
    return lambda joined, kernel, gradient: jax.vjp(run, joined, kernel)[1](gradient)


@jax.custom_vjp
def convolve_causally(
    joined: Float[Array, "b joined h w c"], kernel: Float[Array, "3 3 3 c o"]
) -> Float[Array, "b joined-2 h w o"]:
    """3-D convolution, each frame with the two before it; zero padding in space alone.

    Its gradient is written out because that of `platform_dependent` keeps what both branches need.
    """
    return jax.lax.platform_dependent(
        joined, kernel, cpu=_frames_on_channels, default=native_causal
    )


def _causal_forward(joined: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolve_causally(joined, kernel), (joined, kernel)


def _causal_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return jax.lax.platform_dependent(
        *residuals,
        gradient,
        cpu=_causal_gradients(_frames_on_channels),
        default=_causal_gradients(native_causal),
    )


convolve_causally.defvjp(_causal_forward, _causal_backward)


class Convolution(nnx.Module):
    """Kernel `[k.., in, out]` and bias of a convolution; subclasses say how it runs."""

    def __init__(
        self,
        size: tuple[int, ...],
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        initializer = nnx.initializers.lecun_normal()
        shape = (*size, in_features, out_features)
        self.kernel = nnx.Param(initializer(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32))
        self.dtype = dtype

    def _values(self) -> tuple[Array, Array]:
        return self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)


class CausalConv(Convolution):
    """Three frames deep, none of them in the future; 3 x 3 pixels."""

    def __init__(self, in_features: int, out_features: int, **options):
        super().__init__((3, 3, 3), in_features, out_features, **options)

    def __call__(self, x: Float[Array, "b f h w c"], memory: Memory) -> Array:
        kernel, bias = self._values()
        return convolve_causally(memory.extend(x.astype(self.dtype)), kernel) + bias


class PointConv(Convolution):
    """1 x 1 x 1: a matmul."""

    def __init__(self, in_features: int, out_features: int, **options):
        super().__init__((1, 1, 1), in_features, out_features, **options)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Array:
        kernel, bias = self._values()
        if parallel.row_parts(x.shape[0]) > 1:  # see `layers.Linear`
            return x.astype(self.dtype) @ kernel[0, 0, 0] + bias
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return (flat @ kernel[0, 0, 0] + bias).reshape(*x.shape[:-1], -1)


class FrameConv(Convolution):
    """3 x 3 pixels, frame by frame. With `stride` 2 the zeros are to the right and below."""

    def __init__(self, in_features: int, out_features: int, *, stride: int = 1, **options):
        super().__init__((3, 3), in_features, out_features, **options)
        self.stride = stride

    def __call__(self, x: Float[Array, "b f h w c"], memory: Memory) -> Array:
        kernel, bias = self._values()
        frames = memory.cleared(x).astype(self.dtype).reshape(-1, *x.shape[2:])
        if self.stride == 1:
            y = convolve(frames, kernel)
        else:
            y = jax.lax.conv_general_dilated(
                frames, kernel, (2, 2), ((0, 1), (0, 1)), dimension_numbers=_DIMENSIONS
            )
        return (y + bias).reshape(*x.shape[:2], *y.shape[1:])


class GroupNorm(nnx.Module):
    """Group norm over all frames of a chunk; statistics in float32."""

    def __init__(self, features: int, groups: int, eps: float):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.groups = groups
        self.eps = eps

    def affine(self, x: Float[Array, "b f h w c"], memory: Memory) -> tuple[Array, Array]:
        """Factor and offset per channel, each `[b, 1, 1, 1, c]`, that normalize x."""
        x = x.astype(jnp.float32)
        by_group = (x.shape[0], self.groups, -1)
        mean = self._spread(memory.mean(x).reshape(by_group).mean(-1))
        variance = memory.mean(jnp.square(x - mean)).reshape(by_group).mean(-1)
        factor = self._spread(jax.lax.rsqrt(variance + self.eps)) * self.scale[...]
        return factor, self.bias[...] - mean * factor

    def _spread(self, statistic: Float[Array, "b groups"]) -> Float[Array, "b 1 1 1 c"]:
        each = self.scale.shape[0] // self.groups
        return jnp.repeat(statistic, each, axis=1)[:, None, None, None]

    def __call__(self, x: Float[Array, "b f h w c"], memory: Memory) -> Array:
        factor, offset = self.affine(x, memory)
        return (x * factor + offset).astype(x.dtype)


def repeat_frames(x: Float[Array, "b t ..."], count: int) -> Float[Array, "b count ..."]:
    """Nearest neighbor in time. Of an odd count the first frame stands alone, as in pooling."""
    frames = x.shape[1]
    if count == frames:
        return x
    if count == 1 or count % 2 == 0:
        return jnp.repeat(x, count // frames, axis=1)
    rest = jnp.repeat(x[:, 1:], (count - 1) // (frames - 1), axis=1)
    return jnp.concatenate([x[:, :1], rest], axis=1)


def pool_frames(x: Float[Array, "b f ..."]) -> Array:
    """Means of frame pairs; of an odd count the first frame stays alone."""
    alone = x.shape[1] % 2
    pairs = (x[:, alone::2] + x[:, alone + 1 :: 2]) * 0.5
    return jnp.concatenate([x[:, :1], pairs], axis=1) if alone else pairs


class SpatialNorm(nnx.Module):
    """Group norm whose scale and shift are read off the latents, pixel by pixel.

    The published model resizes the latents first; 1 x 1 x 1 convolutions commute with nearest
    neighbor resizing, so here they run at the latents' size. From scratch it starts as a plain
    group norm (our decision): a random scale of either sign would scramble every feature.
    """

    def __init__(self, features: int, latent: int, groups: int, **options):
        self.norm = GroupNorm(features, groups, OUTER_NORM_EPS)
        self.to_scale = PointConv(latent, features, **options)
        self.to_shift = PointConv(latent, features, **options)
        # Not `kernel[...] = `: flax compares shardings there, which takes 10 ms on every tracer.
        self.to_scale.bias.set_value(jnp.ones((features,), jnp.float32))
        for conv in (self.to_scale, self.to_shift):
            conv.kernel.set_value(jnp.zeros_like(conv.kernel[...]))

    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        memory: Memory,
        latents: Float[Array, "b t h_lat w_lat latent"],
    ) -> Array:
        b, frames, height, width, features = x.shape
        rows, columns = latents.shape[2:4]
        factor, offset = self.norm.affine(x, memory)
        scale = self.to_scale(latents)
        shift = offset * scale + self.to_shift(latents)
        scale, shift = (
            repeat_frames(value, frames)[:, :, :, None, :, None]
            for value in (factor * scale, shift)
        )
        blocks = x.reshape(b, frames, rows, height // rows, columns, width // columns, features)
        return (blocks * scale + shift).astype(x.dtype).reshape(x.shape)
