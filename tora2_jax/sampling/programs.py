"""The compiled parts of sampling, as functions of a model's variables."""

import copy
from collections import deque

import jax
import jax.numpy as jnp
from flax import nnx

from tora2_jax import conditioning, diffusion
from tora2_jax.config import ModelConfig
from tora2_jax.models.tora2 import Tora2
from tora2_jax.parallel import placement
from tora2_jax.system.finite import finite_rows
from tora2_jax.types import BoundConditions, Conditions, Inputs

_KEPT: deque["Programs"] = deque(maxlen=2)  # of the models used last


class Programs:
    """Conditions, binding and one sampling step of models that differ in their variables only.

    A variable is an argument, never a constant, so one compilation serves every pipeline of equal
    models: training makes a new one for each of its sample videos.

    Attributes:
        encode: (state of the frozen networks, inputs) -> (conditions, unconditional text).
        bind: (state of the model, conditions) -> bound conditions.
        project: (state of the model, text states `[b, l, width]`) -> the model's text tokens.
        step: (state of the model, sampler state, bound conditions, guidance weights, coefficients,
            keys, index) -> (sampler state, whether each row is finite). Takes the memory of the
            sampler state that it is given.
    """

    def __init__(self, config: ModelConfig, model: nnx.GraphDef, frozen: nnx.GraphDef):
        self._config, self._model, self._frozen = copy.deepcopy(config), model, frozen
        self.encode = jax.jit(self._encode)
        self.bind = jax.jit(lambda state, conditions: self._merge(state).bind(conditions)[0])
        self.project = jax.jit(
            lambda state, text: self._merge(state).transformer.project_text(text)
        )
        self.step = jax.jit(self._step, donate_argnums=(1,))

    def serve(self, config: ModelConfig, model: nnx.GraphDef, frozen: nnx.GraphDef) -> bool:
        """Whether these are the programs of such a model. Graphs can be compared, not hashed."""
        return (self._config, self._model, self._frozen) == (config, model, frozen)

    def _merge(self, state: nnx.State) -> Tora2:
        return nnx.merge(self._model, state)

    def _encode(self, state: nnx.State, inputs: Inputs) -> tuple[Conditions, jax.Array]:
        networks, text = nnx.merge(self._frozen, placement.whole(state))
        null = conditioning.unconditional_text(text, self._config, inputs)
        return conditioning.encode(networks, text, self._config, inputs), null

    def _step(
        self,
        model_state: nnx.State,
        state: diffusion.SamplerState,
        bound: BoundConditions,
        weights: jax.Array,
        row: diffusion.StepCoefficients,
        keys: jax.Array,
        index: jax.Array,
    ) -> tuple[diffusion.SamplerState, jax.Array]:
        """Every branch in one batch, guidance in float32, then the sampler."""
        branches = weights.shape[0]
        latents = jnp.concatenate([state.latents] * branches)
        timestep = jnp.full(latents.shape[0], row.timestep, jnp.float32)
        prediction = self._merge(model_state)(latents, timestep, bound).astype(jnp.float32)
        prediction = prediction.reshape(branches, *state.latents.shape)
        guided = jnp.tensordot(weights, prediction, axes=1, precision="highest")
        noise = noise_of(keys, index, state.latents.shape)
        new = diffusion.sampler_step(state, guided, row, noise)
        return new, finite_rows(new.latents)


def programs_of(config: ModelConfig, model: nnx.GraphDef, frozen: nnx.GraphDef) -> Programs:
    """The programs of a model: those of an equal one used lately, or new ones."""
    for kept in _KEPT:
        if kept.serve(config, model, frozen):
            return kept
    made = Programs(config, model, frozen)
    _KEPT.append(made)
    return made


def noise_of(keys: jax.Array, step: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise of a step, `shape`; row i depends on `keys[i]` and the step alone."""
    return jax.vmap(lambda key: diffusion.step_noise(key, step, shape[1:]))(keys)
