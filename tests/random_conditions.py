"""A tiny model and random conditions for the tests of the entity path."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tora2_jax import config as configs
from tora2_jax.models.layers import assign_variables, flat_variables
from tora2_jax.types import Conditions

BATCH, ENTITIES, REFERENCES, GRID = 2, 3, 2, (3, 4, 5)


def tiny_model(**personalization) -> configs.ModelConfig:
    """The toy model with everything made smaller; 4 face tokens, 16 object tokens."""
    model = configs.toy()
    model.text.width = 12
    model.dino.width = 10
    model.face.image_size, model.face.widths, model.face.embedding = 32, (4, 4, 8, 6), 7
    model.object.base_width = 1
    model.motion.width = 6
    model.personalization = configs.PersonalizationConfig(
        **{
            **dict(width=16, queries=3, num_layers=2, num_heads=2, head_dim=4, mlp_ratio=2),
            **personalization,
        }
    )
    model.binding.num_heads, model.binding.head_dim = 2, 4
    model.binding.word_tokens, model.binding.contrast_width = 2, 5
    return model


def random_module(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """The module with every parameter random, also those that start at zero."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    generator = np.random.default_rng(seed)
    arrays = {}
    for path, spec in flat_variables(module).items():
        values = generator.normal(size=spec.shape)
        if path.endswith("kernel"):
            values /= spec.shape[-2] ** 0.5
        elif path.endswith("scale"):
            values = 1 + 0.2 * values
        arrays[path] = values
    assign_variables(module, arrays)
    return module


def masked(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero where the mask, which lacks the last axes, is False."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, 0)


def random_conditions(model: configs.ModelConfig, seed: int = 0) -> Conditions:
    """Sample 0: a human with both, an object with a path, an object with a reference.

    Sample 1: an object with both, a human with a reference but no face, and one padded entity.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=(BATCH, ENTITIES, *shape)), jnp.float32)

    reference = jnp.array([[[1, 1], [0, 0], [1, 0]], [[1, 1], [1, 0], [0, 0]]], bool)
    human = jnp.array([[1, 0, 0], [0, 1, 0]], bool)
    on = jnp.array([[[1, 1, 0], [1, 1, 1], [0, 0, 0]], [[0, 1, 1], [0, 0, 0], [0, 0, 0]]], bool)
    prior = reference & jnp.array([[1, 1, 1], [1, 0, 1]], bool)[..., None]
    words = jnp.array([[[1, 1], [1, 0], [1, 0]], [[1, 1], [1, 1], [0, 0]]], bool)
    splat = jnp.asarray(generator.random((BATCH, ENTITIES, *GRID)), jnp.float32)
    face, objects = model.face, model.object
    return Conditions(
        text=jnp.zeros((BATCH, 4, model.text.width)),
        motion_latents=jnp.zeros((BATCH, 3, 8, 10, 16)),
        splat=masked(splat, on),
        path=masked(normal(GRID[0], 4), on),
        on=on,
        words=masked(normal(2, model.text.width), words),
        word_mask=words,
        is_human=human,
        reference_mask=reference,
        prior_mask=prior,
        dino=masked(normal(REFERENCES, 9, model.dino.width), reference),
        face_tokens=masked(normal(REFERENCES, 4, face.widths[-1]), prior & human[..., None]),
        face_vector=masked(normal(REFERENCES, face.embedding), prior & human[..., None]),
        object_tokens=masked(normal(REFERENCES, 16, objects.width), reference),
        object_vector=masked(normal(REFERENCES, objects.width), reference),
    )


def permuted(conditions: Conditions, order: list[int]) -> Conditions:
    """The same conditions with the entities in another order."""
    shared = ("text", "motion_latents", "image_latents")
    entity_fields = [name for name in Conditions._fields if name not in shared]
    return conditions._replace(
        **{name: getattr(conditions, name)[:, np.array(order)] for name in entity_fields}
    )


def spoiled(conditions: Conditions) -> Conditions:
    """Not-a-number in everything that the masks say is absent."""

    def spoil(name, mask):
        values = getattr(conditions, name)
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        return jnp.where(mask, values, jnp.nan)

    reference, human = conditions.reference_mask, conditions.is_human[..., None]
    prior = conditions.prior_mask
    masks = {
        "splat": conditions.on,
        "path": conditions.on,
        "words": conditions.word_mask,
        "dino": reference,
        "face_tokens": prior & human,
        "face_vector": prior & human,
        "object_tokens": prior & ~human,
        "object_vector": prior & ~human,
    }
    return conditions._replace(**{name: spoil(name, mask) for name, mask in masks.items()})
