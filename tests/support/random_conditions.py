"""A tiny model and random conditions for the tests of the entity path."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tora2_jax import config as configs
from tora2_jax.conditioning import from_arrays, to_arrays
from tora2_jax.models.layers.basic import assign_variables, flat_variables
from tora2_jax.types import Conditions, PriorFeatures

BATCH, ENTITIES, GRID = 2, 3, (3, 4, 5)
FEATURES = ("dino", "face_tokens", "face_vector", "object_tokens", "object_vector")
REFERENCE_FIELDS = (*FEATURES, "reference_mask", "prior_mask")

# These programs are small and run once or twice: nearly all of their time would be optimization.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


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
    return _filled(
        model,
        seed,
        human=[[1, 0, 0], [0, 1, 0]],
        reference=[[[1, 1], [0, 0], [1, 0]], [[1, 1], [1, 0], [0, 0]]],
        face=[[1, 1, 1], [1, 0, 1]],
        on=[[[1, 1, 0], [1, 1, 1], [0, 0, 0]], [[0, 1, 1], [0, 0, 0], [0, 0, 0]]],
        words=[[[1, 1], [1, 0], [1, 0]], [[1, 1], [1, 1], [0, 0]]],
    )


def crowded_conditions(model: configs.ModelConfig, seed: int = 0) -> Conditions:
    """Eight entities of up to four references.

    Sample 0 is full: some without references, some without a path, a human without a face. Sample 1
    has two padded entities among others and three behind them.
    """
    counts = np.array([[4, 0, 3, 1, 4, 2, 4, 1], [1, 4, 0, 0, 2, 0, 0, 0]])
    paths = [
        [[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]],
        [[1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], *[[0, 0, 0]] * 3],
    ]
    there = (counts > 0) | np.any(paths, axis=-1)
    return _filled(
        model,
        seed,
        human=[[1, 0, 0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1, 0, 1]],
        reference=np.arange(4) < counts[..., None],
        face=[[1, 1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1, 1]],
        on=paths,
        words=np.stack([there, there & (counts != 1)], -1),
    )


def _filled(model: configs.ModelConfig, seed: int, *, human, reference, face, on, words):
    """Random numbers wherever something is; `face`: whether an entity's priors were found."""
    human, reference, face, on, words = (
        jnp.asarray(mask, bool) for mask in (human, reference, face, on, words)
    )
    batch, entities, references = reference.shape
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=(batch, entities, *shape)), jnp.float32)

    prior = reference & face[..., None]
    splat = jnp.asarray(generator.random((batch, entities, *GRID)), jnp.float32)
    faces, objects = model.face, model.object
    return Conditions(
        text=jnp.zeros((batch, 4, model.text.width)),
        motion_latents=jnp.zeros((batch, 3, 8, 10, 16)),
        splat=masked(splat, on),
        path=masked(normal(GRID[0], 4), on),
        on=on,
        words=masked(normal(words.shape[-1], model.text.width), words),
        word_mask=words,
        is_human=human,
        reference_mask=reference,
        prior_mask=prior,
        dino=masked(normal(references, 9, model.dino.width), reference),
        face=PriorFeatures(
            masked(normal(references, 4, faces.widths[-1]), prior & human[..., None]),
            masked(normal(references, faces.embedding), prior & human[..., None]),
        ),
        object=PriorFeatures(
            masked(normal(references, 16, objects.width), reference),
            masked(normal(references, objects.width), reference),
        ),
    )


def changed(conditions: Conditions, arrays: dict) -> Conditions:
    """The same conditions with some of the arrays of `to_arrays` replaced."""
    return from_arrays(to_arrays(conditions) | arrays)


def of_entities(conditions: Conditions) -> dict[str, jax.Array]:
    """The arrays with an axis of entities."""
    shared = ("text", "motion_latents", "image_latents")
    arrays = to_arrays(conditions)
    return {name: value for name, value in arrays.items() if name not in shared}


def permuted(conditions: Conditions, order: list[int]) -> Conditions:
    """The same conditions with the entities in another order."""
    arrays = of_entities(conditions)
    return changed(conditions, {name: value[:, np.array(order)] for name, value in arrays.items()})


def padded(conditions: Conditions) -> Conditions:
    """The same conditions with room for one more entity and one more reference."""

    def pad(name, values):
        references = 1 if name in REFERENCE_FIELDS else 0
        widths = [(0, 0), (0, 1), (0, references), *[(0, 0)] * max(0, values.ndim - 3)]
        return jnp.pad(values, widths[: values.ndim])

    arrays = of_entities(conditions)
    return changed(conditions, {name: pad(name, value) for name, value in arrays.items()})


def spoiled(conditions: Conditions, variant: str = "dpe") -> Conditions:
    """Not-a-number in everything that the masks say is absent, or that the variant does not see."""

    def spoil(name, mask):
        values = to_arrays(conditions)[name]
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        return jnp.where(mask, values, jnp.nan)

    reference, human = conditions.reference_mask, conditions.is_human[..., None]
    prior, none = conditions.prior_mask, jnp.zeros_like(reference)
    face, objects = {
        "dpe": (prior & human, prior & ~human),
        "dino_decoupled": (prior & human, prior & ~human),
        "dino_reid": (none, reference & (prior | human)),
        "dino": (none, none),
    }[variant]
    masks = {
        "splat": conditions.on,
        "path": conditions.on,
        "words": conditions.word_mask,
        "dino": reference,
        "face_tokens": face,
        "face_vector": face,
        "object_tokens": objects,
        "object_vector": objects,
    }
    return changed(conditions, {name: spoil(name, mask) for name, mask in masks.items()})
