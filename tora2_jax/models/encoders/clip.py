"""CLIP (Radford et al., 2021): images and captions to embeddings in one space, ViT towers."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from tora2_jax.config.encoders import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from tora2_jax.models.layers.basic import LayerNorm, Linear, scan, stack
from tora2_jax.models.layers.vit import SelfAttention, image_patches, small_normal

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LEGACY_END = 2  # eos_token_id of configs written before transformers knew where a caption ends


class ImageFeatures(NamedTuple):
    """What CLIP sees in images."""

    embedding: Float[Array, "*n f"]  # in the space shared with captions; not normalized
    class_token: Float[Array, "*n c"]  # of the last layer, before the last norm
    patches: Float[Array, "*n k c"]  # of the last layer, row-major


class TextFeatures(NamedTuple):
    """What CLIP reads in captions."""

    embedding: Float[Array, "b f"]  # in the space shared with images; not normalized
    tokens: Float[Array, "b l c"]  # after the last norm


def _activation(name: str, x: Array) -> Array:
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


class Block(nnx.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(
        self, config: CLIPVisionConfig | CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width = config.width
        norm = functools.partial(LayerNorm, width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.norm_attention, self.norm_mlp = norm(), norm()
        self.attention = SelfAttention(width, config.num_heads, dtype=dtype, rngs=rngs)
        self.mlp_in = Linear(width, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(config.mlp_dim, width, dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "n n"] | None = None
    ) -> Float[Array, "b n c"]:
        """One layer."""
        x = x + self.attention(self.norm_attention(x), mask)
        return x + self.mlp_out(_activation(self.activation, self.mlp_in(self.norm_mlp(x))))


class VisionTower(nnx.Module):
    """Images -> tokens of the last layer, the class token first."""

    def __init__(
        self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        width, grid = config.width, config.image_size // config.patch_size
        patch = config.patch_size**2 * 3
        norm = functools.partial(LayerNorm, width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        make_block = functools.partial(Block, config, dtype=dtype)
        self.patch_embedding = Linear(patch, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(small_normal(rngs, width))
        self.positions = nnx.Param(small_normal(rngs, 1 + grid**2, width))
        self.norm_before = norm()
        self.blocks = stack(lambda rngs: make_block(rngs=rngs), config.num_layers, rngs)
        self.norm_after = norm()
        self.config, self.dtype = config, dtype

    def __call__(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n c"]:
        """`images` are RGB in [0, 1]; a rest beside the patches is cut off, as a convolution does.

        Raises:
            ValueError: the images do not have the side the network was made for.
        """
        side, patch = self.config.image_size, self.config.patch_size
        if images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"CLIP takes images of {side} x {side} pixels and got {images.shape[1:]}; "
                "evaluation.clip.preprocess makes them so"
            )
        whole = side // patch * patch
        images = (images[:, :whole, :whole] - jnp.asarray(CLIP_MEAN, jnp.float32)) / jnp.asarray(
            CLIP_STD, jnp.float32
        )
        patches = self.patch_embedding(image_patches(images, patch).astype(self.dtype))
        first = jnp.broadcast_to(
            self.class_token[...].astype(self.dtype), (len(images), 1, self.config.width)
        )
        tokens = jnp.concatenate([first, patches.reshape(len(images), -1, self.config.width)], 1)
        x = self.norm_before(tokens + self.positions[...].astype(self.dtype))
        return scan(lambda block, carry, _: (block(carry), None), self.blocks, x)[0]


class TextTower(nnx.Module):
    """Captions -> tokens after the last norm; each token sees those before it."""

    def __init__(
        self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        width = config.width
        make_block = functools.partial(Block, config, dtype=dtype)
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            width,
            embedding_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.positions = nnx.Param(small_normal(rngs, config.max_length, width))
        self.blocks = stack(lambda rngs: make_block(rngs=rngs), config.num_layers, rngs)
        self.norm_after = LayerNorm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    def __call__(self, token_ids: Int[Array, "b l"]) -> Float[Array, "b l c"]:
        """Tokens after the last norm; what stands behind a caption's end changes nothing before it.

        Raises:
            ValueError: there are more tokens than positions.
        """
        length = token_ids.shape[1]
        if length > self.config.max_length:
            raise ValueError(
                f"CLIP reads {self.config.max_length} tokens at most and got {length}; "
                "evaluation.clip.tokenize cuts captions"
            )
        x = self.token_embedding(token_ids) + self.positions[...][:length].astype(self.dtype)
        causal = jnp.tri(length, dtype=bool)
        x, _ = scan(lambda block, carry, _: (block(carry, causal), None), self.blocks, x)
        return self.norm_after(x)

    def end(self, token_ids: Int[Array, "b l"]) -> Int[Array, " b"]:
        """Where each caption ends: its first end token, or its first largest id (`LEGACY_END`).

        Both are transformers' rules, and the same for CLIP's own tokenizer, in which the end token
        is the last of the vocabulary.
        """
        if self.config.eos_token_id == LEGACY_END:
            return jnp.argmax(token_ids, axis=-1)
        return jnp.argmax(token_ids == self.config.eos_token_id, axis=-1)


class CLIP(nnx.Module):
    """Both towers with their projections.

    It measures, and a measure must not depend on the machine: in float32 the full precision of
    products is asked for, which accelerators' defaults lack.
    """

    def __init__(
        self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Random weights; `convert/families/clip.py` brings published ones."""
        project = functools.partial(Linear, use_bias=False, dtype=dtype, rngs=rngs)
        self.vision = VisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.text = TextTower(config.text, rngs=rngs, dtype=dtype)
        self.vision_projection = project(config.vision.width, config.embedding)
        self.text_projection = project(config.text.width, config.embedding)
        self.log_scale = nnx.Param(jnp.float32(2.6592))  # log(1 / 0.07), as CLIP's training starts

    def encode_images(self, images: Float[Array, "*n height width 3"]) -> ImageFeatures:
        """Embeddings and last hidden states; `images` are RGB in [0, 1].

        Raises:
            ValueError: the images do not have the side the network was made for.
        """
        leading = images.shape[:-3]
        with jax.default_matmul_precision("highest"):
            tokens = self.vision(images.reshape(-1, *images.shape[-3:]))
            embedding = self.vision_projection(self.vision.norm_after(tokens[:, 0]))
        tokens = tokens.reshape(*leading, *tokens.shape[1:])
        return ImageFeatures(embedding.reshape(*leading, -1), tokens[..., 0, :], tokens[..., 1:, :])

    def encode_texts(self, token_ids: Int[Array, "b l"]) -> TextFeatures:
        """Embeddings and last hidden states of tokenized captions (`evaluation.clip.tokenize`).

        Raises:
            ValueError: there are more tokens than positions.
        """
        with jax.default_matmul_precision("highest"):
            tokens = self.text(token_ids)
            pooled = jnp.take_along_axis(tokens, self.text.end(token_ids)[:, None, None], axis=1)
            return TextFeatures(self.text_projection(pooled[:, 0]), tokens)

    def logits(
        self, images: Float[Array, "m f"], texts: Float[Array, "n f"]
    ) -> Float[Array, "m n"]:
        """Cosines of two sets of embeddings, times the learned scale."""
        return jnp.exp(self.log_scale[...].astype(jnp.float32)) * cosines(images, texts)


def cosines(first: Float[Array, "m f"], second: Float[Array, "n f"]) -> Float[Array, "m n"]:
    """Cosine of the angle between each of the first and each of the second embeddings."""
    first, second = (
        x.astype(jnp.float32) / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
        for x in (first, second)
    )
    return jnp.einsum("mf,nf->mn", first, second, precision="highest")
