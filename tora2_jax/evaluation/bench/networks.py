"""Two small networks that look at toy videos: where is each word, and which entity is this?

They judge the generator, so they share nothing with its encoders: other layers, other seeds.
"""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from tora2_jax.types import Array as AnyArray
from tora2_jax.world.clips import WORDS

NAMES = [word for word, _ in WORDS]  # order of the localizer's maps
STRIDE = 4  # pixels per cell of a heat map
WINDOW = 2  # cells around the peak that take part in the mean
CROP_SIDE = 42  # pixels of the frame that the judge sees around a center
JUDGE_SIDE = 48  # pixels of the judge's input
ABSENT, PRESENT, UNSURE = 0, 1, 2  # UNSURE: partly seen with a hidden center, never counted
_convolution = functools.partial(nnx.Conv, kernel_size=(3, 3), use_bias=False)


def degrade(
    images: Float[Array, "b height width 3"], key: Array
) -> Float[Array, "b height width 3"]:
    """Images in [0, 1] with the faults of small generators: soft, blotchy, noisy, off in light.

    Every image draws its own faults; a quarter of them stays sharp.
    """
    keys = jax.random.split(key, 8)
    batch, height, width, _ = images.shape
    each = (batch, 1, 1, 1)
    choice = jax.random.randint(keys[0], each, 1, 5, jnp.int32)
    softer = images
    for factor in (2, 3, 4):
        small = jax.image.resize(images, (batch, height // factor, width // factor, 3), "linear")
        softer = jnp.where(
            choice == factor, jax.image.resize(small, images.shape, "linear"), softer
        )
    images = images + jax.random.uniform(keys[1], each, jnp.float32) * (softer - images)
    blotches = jax.random.normal(keys[6], (batch, height // 6, width // 6, 3), jnp.float32)
    blotches = jax.image.resize(blotches, images.shape, "linear")
    images = images + blotches * jax.random.uniform(keys[7], each, jnp.float32, maxval=0.12)
    noise = jax.random.normal(keys[2], images.shape, jnp.float32)
    images = images + noise * jax.random.uniform(keys[3], each, jnp.float32, maxval=0.06)
    contrast = jax.random.uniform(keys[4], (batch, 1, 1, 1), jnp.float32, 0.85, 1.15)
    light = jax.random.uniform(keys[5], (batch, 1, 1, 3), jnp.float32, -0.06, 0.06)
    return jnp.clip((images - 0.5) * contrast + 0.5 + light, 0.0, 1.0)


class _Unit(nnx.Module):
    """Convolution, GroupNorm, GELU."""

    def __init__(self, in_features: int, features: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.convolution = _convolution(in_features, features, strides=stride, rngs=rngs)
        self.norm = nnx.GroupNorm(features, num_groups=8, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b rows columns d"]:
        return nnx.gelu(self.norm(self.convolution(x)))


class _Stage(nnx.Module):
    """Halves the map, then one residual unit."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.down = _Unit(in_features, features, stride=2, rngs=rngs)
        self.unit = _Unit(features, features, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y2 x2 d"]:
        x = self.down(x)
        return x + self.unit(x)


class Localizer(nnx.Module):
    """Frame -> for every word of the toy world a map of where it is, and whether it is there."""

    def __init__(
        self,
        words: int = len(NAMES),
        widths: tuple[int, int, int] = (40, 64, 96),
        *,
        rngs: nnx.Rngs,
    ):
        quarter, eighth, sixteenth = widths
        self.stem = _Unit(3, 16, stride=2, rngs=rngs)
        self.quarter = _Stage(16, quarter, rngs=rngs)
        self.eighth = _Stage(quarter, eighth, rngs=rngs)
        self.sixteenth = _Stage(eighth, sixteenth, rngs=rngs)
        self.to_eighth = nnx.Linear(sixteenth, eighth, rngs=rngs)
        self.join_eighth = _Unit(eighth, eighth, rngs=rngs)
        self.to_quarter = nnx.Linear(eighth, quarter, rngs=rngs)
        self.join_quarter = _Unit(quarter, quarter, rngs=rngs)
        self.heat = nnx.Conv(quarter, words, (1, 1), rngs=rngs)
        self.evidence = nnx.Conv(quarter, words, (1, 1), rngs=rngs)

    def __call__(
        self, frames: Float[Array, "b height width 3"]
    ) -> tuple[Float[Array, "b y x words"], Float[Array, "b words"]]:
        """Frames in [0, 1] -> logits of the place, logits of presence."""
        heat, evidence = self.maps(frames)
        return heat, presence(heat, evidence)

    def maps(
        self, frames: Float[Array, "b height width 3"]
    ) -> tuple[Float[Array, "b y x words"], Float[Array, "b y x words"]]:
        """Logits of the place, and of every cell showing the word rather than anything else."""
        quarter = self.quarter(self.stem(frames - 0.5))
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        eighth = self.join_eighth(eighth + _resized(self.to_eighth(sixteenth), eighth))
        joined = self.join_quarter(quarter + _resized(self.to_quarter(eighth), quarter))
        return self.heat(joined), self.evidence(joined)


def presence(
    heat: Float[Array, "b y x words"], evidence: Float[Array, "b y x words"]
) -> Float[Array, "b words"]:
    """Evidence at the place where the word would be; its gradient does not move the place."""
    share = jax.nn.softmax(jax.lax.stop_gradient(heat), axis=(1, 2))
    return jnp.sum(share * evidence, axis=(1, 2))


def _resized(x: Float[Array, "b y x c"], like: Float[Array, "b y2 x2 c"]):
    return jax.image.resize(x, like.shape, "linear")


def cell_centers(rows: int, columns: int) -> Float[Array, "y x 2"]:
    """Center (x, y) of every cell of a heat map, in pixels."""
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    return STRIDE * (jnp.stack([x, y], axis=-1) + 0.5)


def peak_centers(heat: Float[Array, "b y x words"]) -> Float[Array, "b words 2"]:
    """Mean place in pixels (x, y) within a window around the highest cell of every map."""
    batch, rows, columns, words = heat.shape
    flat = heat.reshape(batch, rows * columns, words)
    places = cell_centers(rows, columns).reshape(-1, 2)
    peak = places[jnp.argmax(flat, axis=1)]
    distance = jnp.abs(places[None, :, None] - peak[:, None]).max(-1)
    weights = jax.nn.softmax(jnp.where(distance <= STRIDE * WINDOW, flat, -1e9), axis=1)
    return jnp.einsum("bnw,nc->bwc", weights, places)


@nnx.jit
def _locate(
    localizer: Localizer, frames: UInt8[Array, "f height width 3"], index: Int[Array, " e"]
) -> tuple[Float[Array, "e f 2"], Float[Array, "e f"]]:
    heat, shown = localizer(frames.astype(jnp.float32) / 255.0)
    centers = peak_centers(heat[..., index])
    return centers.transpose(1, 0, 2), shown[:, index].T


def locate(
    localizer: Localizer, frames: UInt8[AnyArray, "f height width 3"], words: list[str]
) -> tuple[Float[np.ndarray, "e f 2"], Bool[np.ndarray, "e f"]]:
    """Where the words are in a video: centers (x, y) in its pixels, and whether they are there.

    Raises:
        ValueError: a word that the toy world does not have.
    """
    unknown = [word for word in words if word not in NAMES]
    if unknown:
        raise ValueError(f"the toy world has no {', '.join(unknown)}; it has {', '.join(NAMES)}")
    index = jnp.asarray([NAMES.index(word) for word in words])
    centers, shown = _locate(localizer, jnp.asarray(frames), index)
    return np.asarray(centers), np.asarray(shown) > 0.0


class Judge(nnx.Module):
    """Picture of an entity -> unit vector; crops of a video and references meet in one space."""

    def __init__(self, width: int = 40, embedding: int = 64, *, rngs: nnx.Rngs):
        self.stem = _Unit(3, width, stride=2, rngs=rngs)
        self.half = _Stage(width, width, rngs=rngs)
        self.quarter = _Stage(width, 2 * width, rngs=rngs)
        self.eighth = _Stage(2 * width, 2 * width, rngs=rngs)
        self.crop_head = nnx.Linear(4 * width, embedding, rngs=rngs)
        self.reference_head = nnx.Linear(4 * width, embedding, rngs=rngs)

    def embed_crops(self, crops: Float[Array, "b side side 3"]) -> Float[Array, "b d"]:
        """Squares of frames around an entity, in [0, 1] -> unit vectors."""
        return _unit(self.crop_head(self._features(crops)))

    def embed_references(self, images: Float[Array, "b side side 3"]) -> Float[Array, "b d"]:
        """References on white, in [0, 1] -> unit vectors."""
        return _unit(self.reference_head(self._features(images)))

    def _features(self, images: Float[Array, "b side side 3"]) -> Float[Array, "b c"]:
        x = self.eighth(self.quarter(self.half(self.stem(images - 0.5))))
        return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def crops_around(
    frames: Float[Array, "n height width 3"],
    centers: Float[Array, "n 2"],
    side: Float[Array, " n"] | float = CROP_SIDE,
) -> Float[Array, "n side side 3"]:
    """Squares of `side` pixels around (x, y), resampled for the judge; outside is gray."""
    scale = jnp.broadcast_to(JUDGE_SIDE / jnp.asarray(side, jnp.float32), centers.shape[:1])
    shift = JUDGE_SIDE / 2 - centers[:, ::-1] * scale[:, None]

    def crop(frame: Array, scale: Array, shift: Array) -> Array:
        shape = (JUDGE_SIDE, JUDGE_SIDE, 3)
        scales = jnp.stack([scale, scale])
        return jax.image.scale_and_translate(
            frame - 0.5, shape, (0, 1), scales, shift, "linear", antialias=False
        )

    return jax.vmap(crop)(frames, scale, shift) + 0.5


def white_square(image: UInt8[np.ndarray, "height width 4"]) -> Float[np.ndarray, "side side 3"]:
    """RGBA reference -> its masked box on white, padded to a square, in [0, 1], for the judge."""
    rows, columns = (np.flatnonzero(image[..., 3].any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.ones((JUDGE_SIDE, JUDGE_SIDE, 3), np.float32)
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255.0
    on_white = 1.0 + box[..., 3:] * (box[..., :3] - 1.0)
    side = max(on_white.shape[:2])
    before = [(side - size) // 2 for size in on_white.shape[:2]]
    padding = [(b, side - size - b) for b, size in zip(before, on_white.shape[:2], strict=True)]
    square = np.pad(on_white, [*padding, (0, 0)], constant_values=1.0)
    shrink = cv2.INTER_AREA if side > JUDGE_SIDE else cv2.INTER_LINEAR
    return cv2.resize(square, (JUDGE_SIDE, JUDGE_SIDE), interpolation=shrink)
