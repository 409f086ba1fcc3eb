"""What travels between the rooms of the house. Axis legend, used everywhere:

b batch | e entities | r reference images | f pixel frames | t h w token frames, rows, columns
n = t*h*w video tokens | l text tokens | q personalization tokens per entity | s word tokens
c channels of the DiT stream | d entity width | u channels of a motion map | k DiT layers
x DiT layers with a cross-attention | j = e*q its keys

`t_lat h_lat w_lat` are latent frames, rows and columns. Arrays are channels-last throughout; only
the files of `--init-latents` and `--save-latents` hold `[b, t_lat, c, h, w]`, as diffusers does.
"""

from typing import Literal, NamedTuple, TypeVar, overload

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array = jax.Array | np.ndarray  # on the host until a program is given it
Kind = Literal["human", "object"]
T = TypeVar("T")


@overload
def needed(value: Array | None, what: str) -> Array: ...
@overload
def needed(value: T | None, what: str) -> T: ...
def needed(value: T | None, what: str) -> T:
    """A part that may be missing, for a model that cannot do without it.

    Raises:
        ValueError: it is None; `what` says what that is.
    """
    if value is None:
        raise ValueError(f"the model needs {what}, of which it was given none")
    return value


class EntityRecord(NamedTuple):
    """One entity of a clip, with what is known about it."""

    word: str  # as it stands in the caption
    span: tuple[int, int]  # character range of the word in the caption
    kind: Kind
    images: tuple[UInt8[np.ndarray, "height width 4"], ...]  # references: RGBA, alpha is the mask
    track: Float[np.ndarray, "f 2"]  # center, (x, y) in pixels of the clip
    visible: Bool[np.ndarray, " f"]  # whether the center is inside the frame and seen
    mask: Bool[np.ndarray, "f height width"] | None  # its visible pixels; None: not known
    has_trajectory: bool = True  # False: the path is withheld from the model


class Record(NamedTuple):
    """One clip with ground truth; the same form for the toy world and for real data."""

    id: str
    caption: str
    video: UInt8[np.ndarray, "f height width 3"]
    fps: int
    entities: tuple[EntityRecord, ...]
    # Pixels from frame f to f+1, the last is zero; None: not known.
    flow: Float[np.ndarray, "f height width 2"] | None = None


class PriorFeatures(NamedTuple):
    """What a recognition network (face or object) says about images."""

    tokens: Float[Array, "*n k f"]  # its last map, row-major
    vector: Float[Array, "*n f_vector"]


class EncodedReferences(NamedTuple):
    """What the encoders say about references; None: the model has no such network."""

    dino: Float[Array, "b e r dino_tokens dino_width"] | None = None
    face: PriorFeatures | None = None  # *n is b e r
    object: PriorFeatures | None = None


class StoredFeatures(NamedTuple):
    """Features of the references that files bring instead of images; the others are zero."""

    given: Bool[Array, "b e r"]
    features: EncodedReferences  # none of them None


class Inputs(NamedTuple):
    """Numbers in, before any network: what `conditioning.encode` turns into `Conditions`."""

    token_ids: Int[Array, "b l"]  # caption, padded with 0, no attention mask
    flow_video: Float[Array, "b f height width 3"]  # colored paths in [-1, 1], white is still
    splat: Float[Array, "b e t h w"]  # A~: where the entity is, in [0, 1]
    path: Float[Array, "b e t 4"]  # mean visible x, y and their change, fractions of the frame
    on: Bool[Array, "b e t"]  # whether the entity has a path there
    word_index: Int[Array, "b e s"]  # positions of the word's tokens in token_ids
    word_mask: Bool[Array, "b e s"]
    is_human: Bool[Array, "b e"]
    reference_mask: Bool[Array, "b e r"]
    prior_mask: Bool[Array, "b e r"]  # False: no face was found, only DINO tokens remain
    dino_images: Float[Array, "b e r side side 3"]  # in [0, 1], background white
    face_images: Float[Array, "b e r side side 3"]  # in [0, 1], aligned; zeros for objects
    object_images: Float[Array, "b e r height width 3"]  # in [0, 1]; of humans too
    image: Float[Array, "b height width 3"] | None = None  # first frame in [-1, 1] (I2V)
    negative_ids: Int[Array, "b l"] | None = None  # negative prompts; a row of zeros has none
    stored: StoredFeatures | None = None  # references from files; their images are zeros


class Conditions(NamedTuple):
    """All that crosses from the frozen networks to the trainable ones. Can be cached.

    What a model has no network for is None.
    """

    word_mask: Bool[Array, "b e s"]
    splat: Float[Array, "b e t h w"]
    path: Float[Array, "b e t 4"]
    on: Bool[Array, "b e t"]
    is_human: Bool[Array, "b e"]
    reference_mask: Bool[Array, "b e r"]
    prior_mask: Bool[Array, "b e r"]
    text: Float[Array, "b l text_width"] | None = None  # T5 states, null text where dropped
    words: Float[Array, "b e s text_width"] | None = None  # T5 states of the undropped caption
    motion_latents: Float[Array, "b t_lat h_lat w_lat latent"] | None = None
    dino: Float[Array, "b e r dino_tokens dino_width"] | None = None
    face: PriorFeatures | None = None
    object: PriorFeatures | None = None
    image_latents: Float[Array, "b t_lat h_lat w_lat latent"] | None = None


class KeysValues(NamedTuple):
    """Personalization tokens as the cross-attention reads them; one layer's have no `x`."""

    keys: Float[jax.Array, "x b j heads head_dim"]
    values: Float[jax.Array, "x b j heads head_dim"]


class BoundConditions(NamedTuple):
    """Conditions after the trainable encoders: independent of the timestep, once per request."""

    text: Float[jax.Array, "b l c"]  # projected to the width of the stream
    motion_maps: Float[jax.Array, "k b t h w u"] | None
    has_motion: Bool[jax.Array, " b"] | None  # some entity has a trajectory
    keys_values: KeysValues | None  # of every cross-attention
    key_mask: Bool[jax.Array, "b j"] | None
    image_latents: Float[Array, "b t_lat h_lat w_lat latent"] | None = None


class ContrastEmbeddings(NamedTuple):
    """Both sides of the contrastive loss, one row per entity."""

    personalization: Float[jax.Array, "b e 256"]  # L2-normalized
    motion: Float[jax.Array, "b e 256"]
    takes_part: Bool[jax.Array, "b e"]
