"""Binding of an entity's reference, word and path (eq. 5); for the loss see contrast.py.

The gated self-attention is the paper's; the form of motion tokens, gates and the way back into the
motion map are our decisions. Everything here is float32.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from tora2_jax.config import ModelConfig
from tora2_jax.models.contrast import retrieval_accuracy
from tora2_jax.models.layers.attention import attention
from tora2_jax.models.layers.basic import LECUN_NORMAL, ZEROS, LayerNorm, Linear, sinusoid
from tora2_jax.models.personalization import keep, normal_parameter
from tora2_jax.types import Array as AnyArray
from tora2_jax.types import Conditions, ContrastEmbeddings, needed

NORM_EPS = 1e-6
PATH_VALUES = 4


class BoundEntities(NamedTuple):
    """What binding makes of the entities; `_before` is what it was given."""

    personalization: Float[Array, "b e q d"]
    personalization_before: Float[Array, "b e q d"]
    personalization_mask: Bool[Array, "b e q"]
    motion_map: Float[Array, "b t h w u"]
    motion_tokens: Float[Array, "b e t d"]
    motion_tokens_before: Float[Array, "b e t d"]
    metrics: dict[str, Float[Array, ""]]


class BindingDetails(NamedTuple):
    """How the gated binding comes to its result; n = q + t + s tokens, in the order [p ; m ; c]."""

    attention: Float[Array, "b e heads n n"]  # rows: who looks; 0 where nothing can be looked at
    mask: Bool[Array, "b e n"]  # which tokens there are
    gate_personalization: Float[Array, "b e q d"]  # factor of each channel
    gate_motion: Float[Array, "b e t d"]


class MotionTokens(nnx.Module):
    """One token per entity and token frame: the map where the entity is, and its path."""

    def __init__(self, map_width: int, width: int, frequencies: int, *, rngs: nnx.Rngs) -> None:
        """`frequencies` per path value: 1, 2, 4, ... half turns over the frame."""
        self.pooled = Linear(map_width, width, use_bias=False, rngs=rngs)
        self.path_in = Linear(PATH_VALUES * frequencies * 2, width, rngs=rngs)
        self.path_out = Linear(width, width, rngs=rngs)
        self.frequencies = frequencies

    def __call__(
        self, motion_map: Float[Array, "b t h w u"], conditions: Conditions
    ) -> Float[Array, "b e t d"]:
        """m, exactly 0 where the entity has no path."""
        on = conditions.on
        total = conditions.splat.sum((-2, -1))
        share = conditions.splat / jnp.where(on, total, 1.0)[..., None, None]
        pooled = jnp.einsum("bethw,bthwu->betu", share, motion_map)
        waves = fourier(keep(conditions.path, on), self.frequencies)
        path = self.path_out(jax.nn.gelu(self.path_in(waves), approximate=False))
        return keep(self.pooled(pooled) + path, on)


def fourier(values: Float[Array, "*n k"], frequencies: int) -> Float[Array, "*n k*2*{frequencies}"]:
    """Sine and cosine of each value at `pi * 2**j`, j = 0 .. frequencies - 1."""
    angles = values[..., None] * (math.pi * 2.0 ** jnp.arange(frequencies, dtype=jnp.float32))
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    return waves.reshape(*values.shape[:-1], -1)


class SigmoidGate(nnx.Module):
    """`G(x) = sigmoid(W_g x + b_g) * (W x)`: open by half at the start."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        """Two square maps."""
        self.gate = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, use_bias=False, rngs=rngs)

    def opening(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The gate's factors, in (0, 1)."""
        return jax.nn.sigmoid(self.gate(x))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Gated values."""
        return self.opening(x) * self.value(x)


class TanhGate(nnx.Module):
    """`G(x) = tanh(alpha) * (W x)` with one learned alpha, 0 at the start (GLIGEN's gate)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        """A scalar and a square map."""
        self.alpha = nnx.Param(jnp.zeros((), jnp.float32))
        self.value = Linear(width, width, use_bias=False, rngs=rngs)

    def opening(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The gate's factor, in (-1, 1): one for all."""
        return jnp.broadcast_to(jnp.tanh(self.alpha[...]), x.shape)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Gated values."""
        return self.opening(x) * self.value(x)


class GatedBinding(nnx.Module):
    """Gated self-attention over `[p ; m ; c]` of one entity (eq. 5), a single layer."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Norms and embeddings per modality, so that none drowns the others."""
        width, map_width = entity_widths(config)
        settings = config.binding
        inner = settings.num_heads * settings.head_dim
        gates: dict[str, type[SigmoidGate | TanhGate]]
        gates = {"sigmoid": SigmoidGate, "tanh": TanhGate}
        gate = gates[settings.gate]
        self.norm_personalization = LayerNorm(width, rngs=rngs)
        self.norm_motion = LayerNorm(width, rngs=rngs)
        self.norm_words = LayerNorm(width, rngs=rngs)
        self.modalities = normal_parameter(rngs, 3, width)
        self.query = Linear(width, inner, rngs=rngs)
        self.key = Linear(width, inner, rngs=rngs)
        self.value = Linear(width, inner, rngs=rngs)
        self.output = Linear(inner, width, rngs=rngs)
        self.gate_personalization = gate(width, rngs=rngs)
        self.gate_motion = gate(width, rngs=rngs)
        # One zero per path: with the tanh gate it is alpha.
        kernel_init = ZEROS if settings.gate == "sigmoid" else LECUN_NORMAL
        self.to_map = Linear(width, map_width, use_bias=False, kernel_init=kernel_init, rngs=rngs)
        self.num_heads = settings.num_heads

    def __call__(
        self,
        p: Float[Array, "b e q d"],
        p_mask: Bool[Array, "b e q"],
        m: Float[Array, "b e t d"],
        words: Float[Array, "b e s d"],
        conditions: Conditions,
    ) -> tuple[Float[Array, "b e q d"], Float[Array, "b e t d"], Float[Array, "b t h w u"]]:
        """What is to be added to p, to m and to the motion map; 0 where there is nothing."""
        tokens, mask = self._tokens(p, p_mask, m, words, conditions)
        at_p, at_m = self._split(self._attend(tokens, mask), p, m)
        delta_p = keep(self.gate_personalization(at_p), p_mask)
        delta_m = keep(self.gate_motion(at_m), conditions.on)
        spread = jnp.einsum("bethw,betu->bthwu", conditions.splat, self.to_map(delta_m))
        return delta_p, delta_m, spread

    def details(
        self,
        p: Float[Array, "b e q d"],
        p_mask: Bool[Array, "b e q"],
        m: Float[Array, "b e t d"],
        words: Float[Array, "b e s d"],
        conditions: Conditions,
    ) -> BindingDetails:
        """What a call does on its way, for people to look at."""
        tokens, mask = self._tokens(p, p_mask, m, words, conditions)
        query, key, _ = self._heads(tokens)
        # As values, one-hot rows make the attention give its weights.
        count = tokens.shape[-2]
        one_hot = jnp.broadcast_to(
            jnp.eye(count, dtype=jnp.float32)[:, None], (*key.shape[:3], count)
        )
        weights = attention(query, key, one_hot, rearrange(mask, "b e n -> (b e) 1 1 n"))
        at_p, at_m = self._split(self._attend(tokens, mask), p, m)
        return BindingDetails(
            rearrange(weights, "(b e) n heads k -> b e heads n k", b=p.shape[0]),
            mask,
            self.gate_personalization.opening(at_p),
            self.gate_motion.opening(at_m),
        )

    def _tokens(
        self, p, p_mask, m, words, conditions: Conditions
    ) -> tuple[Float[Array, "b e n d"], Bool[Array, "b e n"]]:
        """[p ; m ; c], each with its norm and embeddings, and which of them there are."""
        modality = self.modalities[...]
        frame = sinusoid(jnp.arange(m.shape[2]), m.shape[-1])
        tokens = [
            self.norm_personalization(p) + modality[0],
            self.norm_motion(m) + modality[1] + frame,
            self.norm_words(words) + modality[2],
        ]
        mask = jnp.concatenate([p_mask, conditions.on, conditions.word_mask], -1)
        return jnp.concatenate(tokens, -2), mask

    def _heads(self, tokens: Float[Array, "b e n d"]) -> tuple[Array, Array, Array]:
        """Query, key and value of every head; entities are folded into the batch."""
        query, key, value = (
            rearrange(project(tokens), "b e n (heads d) -> (b e) n heads d", heads=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        return query, key, value

    def _split(self, attended: Float[Array, "b e n d"], p, m) -> tuple[Array, Array]:
        """The parts of p and m; that of the words is discarded."""
        count = p.shape[2]
        return attended[:, :, :count], attended[:, :, count : count + m.shape[2]]

    def _attend(
        self, tokens: Float[Array, "b e n d"], mask: Bool[Array, "b e n"]
    ) -> Float[Array, "b e n d"]:
        """Self-attention inside each entity."""
        mask = rearrange(mask, "b e n -> (b e) 1 1 n")
        attended = attention(*self._heads(tokens), mask)
        attended = rearrange(attended, "(b e) n heads d -> b e n (heads d)", b=tokens.shape[0])
        return self.output(attended)


class LinearBinding(nnx.Module):
    """Table 3's comparison, in the form of Video Alchemist: p alone changes, the map does not."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """One map of a p token, the mean m and all word tokens."""
        width = needed(config.personalization, "settings of personalization").width
        self.merge = Linear(width * (2 + config.binding.word_tokens), width, rngs=rngs)

    def __call__(
        self,
        p: Float[Array, "b e q d"],
        p_mask: Bool[Array, "b e q"],
        m: Float[Array, "b e t d"],
        words: Float[Array, "b e s d"],
        conditions: Conditions,
    ) -> tuple[Float[Array, "b e q d"], None, None]:
        """What is to be added to p; nothing for m and the motion map."""
        parts = [masked_mean(m, conditions.on), rearrange(words, "b e s d -> b e (s d)")]
        entity = jnp.concatenate(parts, -1)[:, :, None]
        entity = jnp.broadcast_to(entity, (*p.shape[:3], entity.shape[-1]))
        return keep(self.merge(jnp.concatenate([p, entity], -1)), p_mask), None, None


def entity_widths(config: ModelConfig) -> tuple[int, int]:
    """Of an entity's tokens (d) and of the motion map (u)."""
    personalization = needed(config.personalization, "settings of personalization")
    return personalization.width, needed(config.motion, "settings of motion").width


def needs_binder(config: ModelConfig) -> bool:
    """Whether references and paths are there, and are bound or at least contrasted."""
    settings = config.binding
    together = config.motion is not None and config.personalization is not None
    return together and (settings.variant, settings.contrast_on) != ("none", "none")


class Binder(nnx.Module):
    """Personalization tokens and motion map in, both bound to each other and to the words out."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Only the parts that `binding.variant` (Table 3) and `binding.contrast_on` need."""
        width, map_width = entity_widths(config)
        settings = config.binding
        kind = {"none": None, "linear": LinearBinding, "gated": GatedBinding}[settings.variant]
        self.motion_tokens = MotionTokens(map_width, width, settings.frequencies, rngs=rngs)
        self.words = None if kind is None else Linear(config.text.width, width, rngs=rngs)
        self.binding = None if kind is None else kind(config, rngs=rngs)
        self.contrast_on = settings.contrast_on
        head = partial(Linear, width, settings.contrast_width, use_bias=False, rngs=rngs)
        compares = self.contrast_on != "none"
        self.contrast_personalization = head() if compares else None
        self.contrast_motion = head() if compares else None

    def __call__(
        self,
        p: Float[Array, "b e q d"],
        p_mask: Bool[Array, "b e q"],
        motion_map: Float[Array, "b t h w u"],
        conditions: Conditions,
    ) -> BoundEntities:
        """Binds; whatever the masks hide is 0 and touches nothing. The map keeps its dtype."""
        values = motion_map.astype(jnp.float32)
        given = self._given(p, p_mask, values, conditions)
        p, _, m, _, conditions = given
        delta_p = delta_m = spread = None
        if self.binding is not None:
            delta_p, delta_m, spread = self.binding(*given)
        bound_map = motion_map if spread is None else (values + spread).astype(motion_map.dtype)
        bound = BoundEntities(
            personalization=p if delta_p is None else p + delta_p,
            personalization_before=p,
            personalization_mask=p_mask,
            motion_map=bound_map,
            motion_tokens=m if delta_m is None else m + delta_m,
            motion_tokens_before=m,
            metrics={
                "delta_p": _relative_norm(delta_p, p),
                "delta_map": _relative_norm(spread, values),
            },
        )
        return bound._replace(metrics={**bound.metrics, **self._retrieval(bound, conditions)})

    def details(
        self,
        p: Float[Array, "b e q d"],
        p_mask: Bool[Array, "b e q"],
        motion_map: Float[Array, "b t h w u"],
        conditions: Conditions,
    ) -> BindingDetails | None:
        """Attention and gates of a call; None for the variants that have neither."""
        if not isinstance(self.binding, GatedBinding):
            return None
        return self.binding.details(*self._given(p, p_mask, motion_map, conditions))

    def _given(self, p, p_mask, motion_map, conditions: Conditions) -> tuple:
        """What a binding takes: p, its mask, m, words and conditions; 0 where masks hide it."""
        on = conditions.on[..., None, None]
        conditions = conditions._replace(splat=jnp.where(on, conditions.splat, 0.0))
        m = self.motion_tokens(motion_map.astype(jnp.float32), conditions)
        known, words = conditions.word_mask, None
        if self.words is not None:
            states = needed(conditions.words, "words")
            words = keep(self.words(keep(states, known)), known)
        return keep(p, p_mask), p_mask, m, words, conditions

    def contrast(self, bound: BoundEntities, conditions: Conditions) -> ContrastEmbeddings | None:
        """Both sides of the contrastive loss, from the tokens that `contrast_on` names, if any."""
        if self.contrast_on == "none":
            return None
        return self._contrast_on(self.contrast_on, bound, conditions)

    def contrast_embeddings(
        self,
        p: Float[Array, "b e q d"],
        p_mask: Bool[Array, "b e q"],
        m: Float[Array, "b e t d"],
        on: Bool[AnyArray, "b e t"],
    ) -> ContrastEmbeddings:
        """Projected means of p and m, of length 1; an entity takes part if it has both."""
        of_p = needed(self.contrast_personalization, "a binding with a contrast")
        of_m = needed(self.contrast_motion, "a binding with a contrast")
        return ContrastEmbeddings(
            personalization=_unit(of_p(masked_mean(p, p_mask))),
            motion=_unit(of_m(masked_mean(m, on))),
            takes_part=p_mask.any(-1) & on.any(-1),
        )

    def _contrast_on(
        self, which: str, bound: BoundEntities, conditions: Conditions
    ) -> ContrastEmbeddings:
        p, m = bound.personalization, bound.motion_tokens
        if which == "unbound":
            p, m = bound.personalization_before, bound.motion_tokens_before
        return self.contrast_embeddings(p, bound.personalization_mask, m, conditions.on)

    def _retrieval(
        self, bound: BoundEntities, conditions: Conditions
    ) -> dict[str, Float[Array, ""]]:
        """Accuracies before and after binding: only the first says whether p and m agree."""
        return {
            f"retrieval_{which}": retrieval_accuracy(self._contrast_on(which, bound, conditions))
            for which in (() if self.contrast_on == "none" else ("unbound", "bound"))
        }


def masked_mean(x: Float[Array, "*n j d"], mask: Bool[AnyArray, "*n j"]) -> Float[Array, "*n d"]:
    """Mean over the tokens that are there; 0 if there is none."""
    return keep(x, mask).sum(-2) / jnp.maximum(mask.sum(-1, keepdims=True), 1)


def _unit(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + NORM_EPS**2)


def _relative_norm(
    delta: Float[Array, "..."] | None, values: Float[Array, "..."]
) -> Float[Array, ""]:
    """|delta| / |values|, for the log only."""
    if delta is None:
        return jnp.zeros((), jnp.float32)
    norms = [jnp.linalg.norm(jax.lax.stop_gradient(x).reshape(-1)) for x in (delta, values)]
    return norms[0] / jnp.maximum(norms[1], NORM_EPS)
