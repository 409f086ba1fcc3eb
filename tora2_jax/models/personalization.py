"""Reference images -> personalization tokens (the paper's decoupled personalization extractor).

Equations 3 and 4 of the paper; what it leaves open is our decision: patch tokens of DINOv2, MLP
adapters per class, learned positions and sources, and a Q-Former without self-attention. Everything
here is float32. Inputs of absent references are replaced by zeros before any arithmetic, so that
they reach neither a value nor a gradient.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float

from tora2_jax.config import ModelConfig, PersonalizationConfig
from tora2_jax.models.encoders.prior import PriorSizes, prior_configs, prior_sizes
from tora2_jax.models.layers.attention import attention
from tora2_jax.models.layers.basic import LayerNorm, Linear, scan, stack
from tora2_jax.types import Array as AnyArray
from tora2_jax.types import Conditions, needed

EMBEDDING_STD = 0.02


def normal_parameter(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """A learned embedding, N(0, 0.02) at the start."""
    return nnx.Param(EMBEDDING_STD * jax.random.normal(rngs.params(), shape, jnp.float32))


class Adapter(nnx.Module):
    """`LN -> Linear -> GELU -> Linear`, from a recognition network's width to the entity width."""

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs) -> None:
        """Both maps have a bias."""
        self.norm = LayerNorm(in_width, rngs=rngs)
        self.expand = Linear(in_width, width, rngs=rngs)
        self.project = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*n f"]) -> Float[Array, "*n d"]:
        """Adapted features."""
        return self.project(jax.nn.gelu(self.expand(self.norm(x)), approximate=False))


class PriorAdapter(nnx.Module):
    """A class's f_theta (eq. 3): map tokens and vector of its recognition network -> d."""

    def __init__(self, sizes: PriorSizes, width: int, *, linear: bool, rngs: nnx.Rngs) -> None:
        """`linear` (Table 2) has neither MLP nor positions."""
        make = Linear if linear else Adapter
        self.map = make(sizes.width, width, rngs=rngs)
        self.vector = make(sizes.vector_width, width, rngs=rngs)
        self.positions = None if linear else normal_parameter(rngs, sizes.tokens, width)

    def __call__(
        self,
        tokens: Float[AnyArray, "b e r k f"],
        vector: Float[AnyArray, "b e r f_vector"],
        present: Bool[AnyArray, "b e r"],
    ) -> tuple[Float[Array, "b e r k d"], Float[Array, "b e r d"]]:
        """Adapted map tokens and vector; those of absent images are meaningless but finite."""
        tokens = self.map(keep(tokens, present[..., None]))
        if self.positions is not None:
            tokens = tokens + self.positions[...]
        return tokens, self.vector(keep(vector, present))


class QFormerLayer(nnx.Module):
    """The queries look at the appearance tokens, then an MLP; both behind a norm, both residual."""

    def __init__(self, config: PersonalizationConfig, *, rngs: nnx.Rngs) -> None:
        """Sizes from the config."""
        width, inner = config.width, config.num_heads * config.head_dim
        self.norm_queries = LayerNorm(width, rngs=rngs)
        self.norm_tokens = LayerNorm(width, rngs=rngs)
        self.query = Linear(width, inner, rngs=rngs)
        self.key = Linear(width, inner, rngs=rngs)
        self.value = Linear(width, inner, rngs=rngs)
        self.output = Linear(inner, width, rngs=rngs)
        self.norm_mlp = LayerNorm(width, rngs=rngs)
        self.mlp_in = Linear(width, width * config.mlp_ratio, rngs=rngs)
        self.mlp_out = Linear(width * config.mlp_ratio, width, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "n q d"], tokens: Float[Array, "n j d"], mask: Bool[Array, "n j"]
    ) -> Float[Array, "n q d"]:
        """One layer; a query with no token to look at is changed by bias and MLP alone."""
        split = functools.partial(
            rearrange, pattern="n j (heads d) -> n j heads d", heads=self.num_heads
        )
        tokens = self.norm_tokens(tokens)
        query = split(self.query(self.norm_queries(x)))
        attended = attention(
            query, split(self.key(tokens)), split(self.value(tokens)), mask[:, None, None]
        )
        x = x + self.output(rearrange(attended, "n q heads d -> n q (heads d)"))
        hidden = jax.nn.gelu(self.mlp_in(self.norm_mlp(x)), approximate=False)
        return x + self.mlp_out(hidden)


class QFormer(nnx.Module):
    """`p = Q(v)` (eq. 4): a fixed number of learned queries sums up any number of tokens."""

    def __init__(self, config: PersonalizationConfig, *, rngs: nnx.Rngs) -> None:
        """Sizes from the config."""
        self.queries = normal_parameter(rngs, config.queries, config.width)
        self.layers = stack(lambda rngs: QFormerLayer(config, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.width, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b e j d"], mask: Bool[Array, "b e j"]
    ) -> Float[Array, "b e q d"]:
        """Personalization tokens; entities do not see each other."""
        batch, entities = mask.shape[:2]
        tokens = rearrange(tokens, "b e j d -> (b e) j d")
        mask = rearrange(mask, "b e j -> (b e) j")
        queries = repeat(self.queries[...], "q d -> n q d", n=batch * entities)
        x, _ = scan(lambda layer, x, _: (layer(x, tokens, mask), None), self.layers, queries)
        return rearrange(self.norm(x), "(b e) q d -> b e q d", b=batch)


class AppearanceExtractor(nnx.Module):
    """References of every entity -> its personalization tokens p.

    `personalization.variant` (Table 2): `dpe` is the paper's; the others end in a linear map, so
    that all tokens of all references are p: `dino` has no recognition network, `dino_reid` uses the
    object encoder for humans too, `dino_decoupled` one network per class.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Only the parts that the variant needs."""
        settings = needed(config.personalization, "settings of personalization")
        width, variant = settings.width, settings.variant
        linear = variant != "dpe"
        make = functools.partial(PriorAdapter, width=width, linear=linear, rngs=rngs)
        priors = prior_configs(config)
        uses_face = variant in ("dino_decoupled", "dpe")
        self.face = make(prior_sizes(priors["face"])) if uses_face else None
        self.object = make(prior_sizes(priors["object"])) if variant != "dino" else None
        projects = linear or config.dino.width != width
        self.image = Linear(config.dino.width, width, rngs=rngs) if projects else None
        # Rows: map of the prior, vector of the prior, DINO.
        self.sources = None if linear else normal_parameter(rngs, 3, width)
        self.query_former = None if linear else QFormer(settings, rngs=rngs)

    def __call__(
        self, conditions: Conditions
    ) -> tuple[Float[Array, "b e q d"], Bool[Array, "b e q"]]:
        """Tokens p (0 where absent) and which of them there are.

        `q` is the number of queries, or for the linear variants of all tokens of all references.
        """
        tokens, mask = self._appearance_tokens(conditions)
        if self.query_former is not None:
            tokens = self.query_former(tokens, mask)
            mask = jnp.broadcast_to(mask.any(-1, keepdims=True), tokens.shape[:-1])
        return keep(tokens, mask), mask

    def _appearance_tokens(
        self, conditions: Conditions
    ) -> tuple[Float[Array, "b e j d"], Bool[Array, "b e j"]]:
        """v of eq. 3: prior map, prior vector and DINO tokens of all references."""
        present = conditions.reference_mask
        image = keep(needed(conditions.dino, "features of DINOv2"), present[..., None])
        image = image if self.image is None else self.image(image)
        parts = [image]
        masks = [jnp.broadcast_to(present[..., None], image.shape[:-1])]
        if self.object is not None:
            prior, vector, prior_mask = self._prior(conditions)
            parts = [prior, vector[..., None, :], image]
            masks = [prior_mask, prior_mask.any(-1, keepdims=True), *masks]
        if self.sources is not None:
            parts = [part + self.sources[...][row] for row, part in enumerate(parts)]
        tokens, mask = jnp.concatenate(parts, -2), jnp.concatenate(masks, -1)
        return rearrange(tokens, "b e r j d -> b e (r j) d"), rearrange(
            mask, "b e r j -> b e (r j)"
        )

    def _prior(
        self, conditions: Conditions
    ) -> tuple[Float[Array, "b e r k d"], Float[Array, "b e r d"], Bool[Array, "b e r k"]]:
        """Prior tokens and vector of each image by its class, and which tokens there are."""
        human = conditions.is_human[..., None]
        present = conditions.reference_mask & conditions.prior_mask
        if self.face is None:
            # Whether a face was found does not matter to the object encoder.
            present = conditions.reference_mask & (conditions.prior_mask | human)
            return self._object_prior(conditions, present)
        tokens, vector, mask = self._object_prior(conditions, present & ~human)
        face_present = present & human
        face = needed(conditions.face, "features of faces")
        face_tokens, face_vector = self.face(face.tokens, face.vector, face_present)
        face_mask = jnp.broadcast_to(face_present[..., None], face_tokens.shape[:-1])
        count = max(tokens.shape[-2], face_tokens.shape[-2])
        tokens = jnp.where(
            human[..., None, None], _padded(face_tokens, count, 3), _padded(tokens, count, 3)
        )
        mask = _padded(face_mask, count, 3) | _padded(mask, count, 3)
        return tokens, jnp.where(human[..., None], face_vector, vector), mask

    def _object_prior(
        self, conditions: Conditions, present: Bool[AnyArray, "b e r"]
    ) -> tuple[Float[Array, "b e r k d"], Float[Array, "b e r d"], Bool[Array, "b e r k"]]:
        assert self.object is not None  # else no prior is asked for
        given = needed(conditions.object, "features of objects")
        tokens, vector = self.object(given.tokens, given.vector, present)
        return tokens, vector, jnp.broadcast_to(present[..., None], tokens.shape[:-1])


def keep(values: Float[AnyArray, "*n c"], mask: Bool[AnyArray, "*#n"]) -> Float[Array, "*n c"]:
    """Float32 values, exactly 0 (also in the gradient) where the mask is False."""
    return jnp.where(mask[..., None], values.astype(jnp.float32), 0.0)


def _padded(values: Array, count: int, axis: int) -> Array:
    """Zeros (or False) behind `values` up to `count` along an axis."""
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, count - values.shape[axis])
    return jnp.pad(values, padding)
