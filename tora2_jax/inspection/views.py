"""What an inspection finds out about a request: plain numbers, one entity at a time.

Axis letters as in `types`; besides, n = q + t + s tokens of a binding in the order [p ; m ; c], and
x the DiT blocks that have a cross-attention.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from tora2_jax.conditioning.references import PreparedEntity
from tora2_jax.config import ModelConfig
from tora2_jax.references.crops import Reference
from tora2_jax.request import Request

MODALITIES = ("p", "m", "c")


class WordView(NamedTuple):
    """The prompt as the text encoder reads it, and the word in it."""

    pieces: tuple[str, ...]  # all pieces of the prompt, also those that are cut off
    room: int  # so many pieces the text encoder is given
    spelled: tuple[int, ...]  # positions of the pieces that spell the word
    kept: tuple[int, ...]  # those that the binder reads; none if the word is cut
    slots: int  # s: so many the binder could read


class PathView(NamedTuple):
    """Where the entity is to be."""

    track: Float[np.ndarray, "f 2"]  # (x, y) in pixels
    visible: Bool[np.ndarray, " f"]
    splat: Float[np.ndarray, "t h w"]
    path: Float[np.ndarray, "t 4"]
    on: Bool[np.ndarray, " t"]
    token_frame: np.ndarray  # of each pixel frame, `[f]`


class BindingView(NamedTuple):
    """The gated self-attention of one entity; ratios are norms of the change over the norm."""

    attention: Float[np.ndarray, "n n"]  # mean over heads; a row tells what its token looks at
    mask: Bool[np.ndarray, " n"]  # which tokens there are
    counts: tuple[int, int, int]  # q, t, s
    summary: Float[np.ndarray, "3 3"]  # mean over the rows of a modality that are there; NaN: none
    gate_p: Float[np.ndarray, "q d"]  # factors of the gates
    gate_m: Float[np.ndarray, "t d"]
    alpha: bool  # the gate is one number (tanh)


class ChangeView(NamedTuple):
    """How far binding moves the entity's tokens and the motion map; NaN where nothing is there."""

    p: float
    m: float
    map: float  # of the whole motion map, by this entity alone
    map_here: float  # where the entity is: both sides weighted by its splat


class BlocksView(NamedTuple):
    """The cross-attention of every DiT block at one timestep."""

    timestep: int
    blocks: tuple[int, ...]  # which of the DiT's blocks
    shares: Float[np.ndarray, "x e"]  # of the attention, every entity's, mean over video tokens
    share_here: Float[np.ndarray, " x"]  # this entity's, weighted by its splat; NaN without a path
    added: Float[np.ndarray, " x"]  # what it adds over the stream, mean of |added| / |token|
    added_here: Float[np.ndarray, " x"]
    where: Float[np.ndarray, "t h w"]  # its share, mean over blocks


class EffectView(NamedTuple):
    """What an entity's references change: |change of the velocity| / |velocity| where it is.

    Each by timestep, when they are kept from one of the ways in, or from both.
    """

    timesteps: tuple[int, ...]
    cross_attention: Float[np.ndarray, " k"]
    motion_map: Float[np.ndarray, " k"]
    both: Float[np.ndarray, " k"]


class EntityView(NamedTuple):
    """One entity; what the model has no part for is None."""

    index: int
    word: str
    requested: str  # kind as the request says
    prepared: PreparedEntity
    references: tuple[Reference, ...]  # the pictures themselves
    names: tuple[str, ...]  # of the files
    reference_mask: Bool[np.ndarray, " r"]  # after the pictures come those that feature files bring
    prior_mask: Bool[np.ndarray, " r"]  # which of them have prior tokens
    word_tokens: WordView
    path: PathView
    still: bool
    change: ChangeView | None
    binding: BindingView | None
    blocks: tuple[BlocksView, ...]  # by timestep; empty: there is no cross-attention
    effect: EffectView | None  # None: it has no references

    @property
    def strongest(self) -> BlocksView | None:
        """The timestep at which its references add most."""
        return max(self.blocks, key=lambda view: view.added.mean(), default=None)


class Retrieval(NamedTuple):
    """Cosines between the contrastive embeddings: rows are references (p), columns paths (m)."""

    before: Float[np.ndarray, "e e"]
    after: Float[np.ndarray, "e e"]
    takes_part: Bool[np.ndarray, " e"]  # has both; the rows and columns of others mean nothing


class Zeros(NamedTuple):
    """Maps that are still zero, as they are before training; None: the model has no such map."""

    cross_attention: bool | None  # W_o
    motion_map: bool | None  # W_out of the binder
    fusers: bool | None  # the temporal convolutions of the motion-guidance fusers


class Inspection(NamedTuple):
    """Everything about one request."""

    name: str
    checkpoint: str
    model: ModelConfig
    request: Request
    entities: tuple[EntityView, ...]
    retrieval: Retrieval | None
    zeros: Zeros
    flow: Float[np.ndarray, "height width 3"] | None  # the strongest of the flow clip, [0, 1]


def modality_slices(counts: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """Where p, m and c are among the n tokens."""
    ends = np.cumsum(counts)
    return tuple(slice(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True))
