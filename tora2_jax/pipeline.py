"""The public way to make videos: `Tora2Pipeline.from_checkpoint(folder).generate(request)`."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from tora2_jax import conditioning, diffusion, placement
from tora2_jax.config import ModelConfig
from tora2_jax.faces import FaceDetector, InsightFaceDetector
from tora2_jax.models import vae_tiling
from tora2_jax.models.t5 import T5Encoder
from tora2_jax.models.tora2 import Tora2
from tora2_jax.models.vae_tiling import VAEMemory
from tora2_jax.request import Request, RequestError, for_each, load_requests, request_names
from tora2_jax.types import BoundConditions, Conditions, Inputs


class SampleSettings(NamedTuple):
    """How a request is sampled. Defaults are the paper's (section 4.1).

    `reference_guidance` and `trajectory_guidance` amplify those conditions (our addition); at 1
    they cost nothing.
    """

    steps: int = 50
    guidance: float = 6.0
    dynamic_guidance: bool = True
    scheduler: diffusion.Scheduler | None = None  # None: the checkpoint's own
    reference_guidance: float = 1.0
    trajectory_guidance: float = 1.0


DEFAULTS = SampleSettings()
_LOG = logging.getLogger(__name__)
Source = Request | str | Path  # a request, or where its file is


class Sample(NamedTuple):
    """What comes out."""

    video: Float[np.ndarray, "b f height width 3"]  # in [0, 1]
    latents: Float[np.ndarray, "b t_lat h_lat w_lat latent"]  # scaled, as the sampler left them


class Branch(NamedTuple):
    """One evaluation of the transformer: which conditions it sees."""

    caption: bool
    references: bool
    trajectories: bool


class Tora2Pipeline:
    """A model with its frozen networks and tokenizer, ready to sample."""

    def __init__(
        self,
        config: ModelConfig,
        model: Tora2,
        text: T5Encoder,
        networks: conditioning.FrozenNetworks,
        tokenizer,
        vae_memory: VAEMemory = "whole",
        detector: FaceDetector | None = None,
    ):
        """Everything with its weights.

        `vae_memory` says how to decode, see `vae_tiling`; `detector` finds faces in references.

        Raises:
            ValueError: if the VAE's picture cannot be cut into tiles and `vae_memory` asks for it.
        """
        self.config, self.tokenizer = config, tokenizer
        self.vae_memory, self.detector = vae_memory, detector
        self._vae = networks.vae
        self._tiles = vae_tiling.DEFAULT_TILES
        if vae_memory == "tiled":
            self._tiles = vae_tiling.tiles_of(config.vae, networks.vae.spatial_compression)
        self._networks = nnx.split((networks, text))
        self._model = nnx.split(model)
        self._encode = jax.jit(self._encode_inputs)
        self._bind = jax.jit(lambda state, conditions: self._merge(state).bind(conditions)[0])
        self._project = jax.jit(
            lambda state, text: self._merge(state).transformer.project_text(text)
        )
        self._step = jax.jit(self._denoise_step, donate_argnums=(1,))

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        dtype=jnp.float32,
        vae_memory: VAEMemory = "whole",
        face_models: str | Path | None = None,
    ) -> "Tora2Pipeline":
        """Load a bundle, a converted folder or a training directory.

        Args:
            directory: The checkpoint.
            dtype: Of the computation.
            vae_memory: `chunked` and `tiled` decode in less memory; `tiled` with other numbers
                where the picture is larger than a tile.
            face_models: A folder with a face detector of insightface, read when a reference needs
                it; see docs/references.md.

        Raises:
            CheckpointError: names everything that is missing or does not fit.
            FaceModelError: there is no face detector in that folder.
        """
        from tora2_jax.bundle import load_bundle

        detector = None if face_models is None else InsightFaceDetector(face_models)
        return cls(*load_bundle(Path(directory), dtype), vae_memory, detector)

    def generate(
        self,
        request: Source | Sequence[Source],
        *,
        seed: int = 0,
        settings: SampleSettings = DEFAULTS,
        initial_latents: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample:
        """Make the video of one request, or those of several of the same size as one batch.

        Args:
            request: From `request.load_request`, or a path to its file; or a list of them.
            seed: Determines every random draw; request i of a list has the seed `seed + i`, and
                its video is the one that it has alone with that seed, up to rounding.
            settings: Steps, guidance, scheduler.
            initial_latents: `[b, t_lat, h_lat, w_lat, latent]` instead of random noise.
            progress: Called with (steps done, steps) after every step.

        Raises:
            RequestError: lists every problem of every request.
        """
        single = isinstance(request, Request | str | Path)
        requests, inputs = self.prepare([request] if single else request)
        return self.generate_batch(
            inputs,
            seeds=[seed + index for index in range(len(requests))],
            settings=settings,
            initial_latents=initial_latents,
            progress=progress,
        )

    def prepare(
        self, sources: Sequence[Source], say: Callable[[str], None] = _LOG.info
    ) -> tuple[list[Request], Inputs]:
        """Requests or their files, checked, and as one batch of numbers.

        `say` is told what was decided about references, one line each; by default it is logged.

        Raises:
            RequestError: lists every problem of every request.
            FaceModelError: the face models cannot be used.
        """
        names = request_names(sources)

        def make(named: tuple[str, Request]) -> Inputs:
            name, request = named
            return conditioning.request_inputs(
                self.config,
                self.tokenizer,
                request,
                self.detector,
                lambda note: say(f"{name}: {note}"),
            )

        requests = load_requests(sources, self.config, self.tokenizer)
        samples, problems = for_each(names, list(zip(names, requests, strict=True)), make)
        if problems:
            raise RequestError(problems)
        return requests, conditioning.batch_inputs(samples)

    def generate_batch(
        self,
        inputs: Inputs,
        *,
        seeds: list[int],
        settings: SampleSettings = DEFAULTS,
        initial_latents: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample:
        """Make one video for every row of `inputs`; row i depends on `seeds[i]` alone.

        Raises:
            ValueError: if the seeds or the initial latents do not fit the inputs.
        """
        batch, frames, height, width = inputs.flow_video.shape[:4]
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for {batch} requests; give one per request")
        shape = self.latent_shape(batch, frames, height, width)
        if initial_latents is not None and initial_latents.shape != shape:
            raise ValueError(f"initial latents are {initial_latents.shape}; they must be {shape}")
        conditions, null = self._encode(self._networks[1], inputs)
        branches, weights = _branches(settings)
        bound = self._bound(self._model[1], conditions, null, branches)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        start = initial_latents
        if start is None:
            start = self._noise(keys, 0, shape)
        latents = self._sample(
            jnp.asarray(start, jnp.float32), bound, weights, keys, settings, progress
        )
        discarded = shape[1] - self.config.latent_grid(frames, height, width)[0]
        video = vae_tiling.decode_latents(
            self._vae, latents[:, discarded:], self.vae_memory, self._tiles
        )
        return Sample(np.clip(video / 2 + 0.5, 0, 1), np.asarray(latents))

    def latent_shape(self, batch: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the sampled latents, front padding of CogVideoX 1.5 included."""
        t, h, w = self.config.latent_grid(frames, height, width)
        patch_t = self.config.transformer.patch_size_t or 1
        return batch, -(-t // patch_t) * patch_t, h, w, self.config.vae.latent_channels

    @property
    def model(self) -> Tora2:
        """The network, with its weights."""
        return nnx.merge(*self._model)

    def conditions(self, inputs: Inputs) -> Conditions:
        """What the network is given for a batch of inputs, beside noise and timestep."""
        return self._encode(self._networks[1], inputs)[0]

    def abstract_step(
        self, inputs: Inputs, settings: SampleSettings = DEFAULTS
    ) -> tuple[Callable, tuple]:
        """The program of one sampling step and its arguments as shapes; weights may be shapes, too.

        The first argument is the state of the network, as it was given.
        """
        branches, weights = _branches(settings)
        batch, frames, height, width = inputs.flow_video.shape[:4]

        def prepare(networks, model, inputs):
            conditions, null = self._encode(networks, inputs)
            latents = jnp.zeros(self.latent_shape(batch, frames, height, width), jnp.float32)
            state = diffusion.SamplerState(latents, latents)
            return (
                state,
                self._bound(model, conditions, null, branches),
                jax.random.split(jax.random.key(0), batch),
            )

        state, bound, keys = jax.eval_shape(prepare, self._networks[1], self._model[1], inputs)
        row = diffusion.StepCoefficients(*[np.float32(1)] * len(diffusion.StepCoefficients._fields))
        return self._step, (self._model[1], state, bound, weights(1.0), row, keys, 1)

    def _merge(self, state) -> Tora2:
        return nnx.merge(self._model[0], state)

    def _encode_inputs(self, state, inputs: Inputs) -> tuple[Conditions, jax.Array]:
        networks, text = nnx.merge(self._networks[0], placement.whole(state))
        null = conditioning.unconditional_text(text, self.config, inputs)
        return conditioning.encode(networks, text, self.config, inputs), null

    def _noise(self, keys: jax.Array, step: int, shape: tuple[int, ...]) -> jax.Array:
        return jax.vmap(lambda key: diffusion.step_noise(key, step, shape[1:]))(keys)

    def _bound(
        self, model_state, conditions: Conditions, null: jax.Array, branches: list[Branch]
    ) -> BoundConditions:
        """The conditions of all evaluations of a step on one batch axis."""
        seen = {}
        for branch in branches:
            withheld = branch[1:]
            if withheld not in seen:
                seen[withheld] = self._bind(model_state, _withhold(conditions, *withheld))
        null = self._project(model_state, null)
        return _concatenate(
            [
                seen[branch[1:]] if branch.caption else seen[branch[1:]]._replace(text=null)
                for branch in branches
            ]
        )

    def _sample(self, latents, bound, weights, keys, settings, progress) -> jax.Array:
        config = self.config.diffusion
        scheduler = settings.scheduler or config.scheduler
        table = diffusion.step_coefficients(config, settings.steps, scheduler)
        scales = np.full(settings.steps, settings.guidance)
        if settings.dynamic_guidance:
            scales = diffusion.dynamic_guidance(settings.guidance, table.timestep, settings.steps)
        state = diffusion.SamplerState(latents, jnp.zeros_like(latents))
        for index in range(settings.steps):
            row = diffusion.StepCoefficients(*(np.float32(values[index]) for values in table))
            state = self._step(
                self._model[1], state, bound, weights(scales[index]), row, keys, index + 1
            )
            if progress is not None:
                progress(index + 1, settings.steps)
        return state.latents

    def _denoise_step(self, model_state, state, bound, weights, row, keys, index):
        """One step: every branch in one batch, guidance in float32, then the sampler."""
        branches = weights.shape[0]
        latents = jnp.concatenate([state.latents] * branches)
        timestep = jnp.full(latents.shape[0], row.timestep, jnp.float32)
        prediction = self._merge(model_state)(latents, timestep, bound).astype(jnp.float32)
        prediction = prediction.reshape(branches, *state.latents.shape)
        guided = jnp.tensordot(weights, prediction, axes=1, precision="highest")
        noise = self._noise(keys, index, state.latents.shape)
        return diffusion.sampler_step(state, guided, row, noise)


def _branches(settings: SampleSettings) -> tuple[list[Branch], Callable[[float], np.ndarray]]:
    """All evaluations of a step, and their weights for a guidance scale.

    v = v(0,R,T) + g [v(C,R,T) - v(0,R,T)] + (g_R - 1) [v(0,R,T) - v(0,0,T)]
        + (g_T - 1) [v(0,R,T) - v(0,R,0)]
    """
    references, trajectories = settings.reference_guidance, settings.trajectory_guidance
    branches = [Branch(False, True, True), Branch(True, True, True)]
    extra = []
    if references != 1:
        branches.append(Branch(False, False, True))
        extra.append(references - 1)
    if trajectories != 1:
        branches.append(Branch(False, True, False))
        extra.append(trajectories - 1)

    def weights(guidance: float) -> np.ndarray:
        unconditional = 1 - guidance + sum(extra)
        return np.array([unconditional, guidance, *(-value for value in extra)], np.float32)

    return branches, weights


def _withhold(conditions: Conditions, references: bool, trajectories: bool) -> Conditions:
    if not references:
        none = jnp.zeros(conditions.is_human.shape, bool)
        conditions = conditioning.keep_references(conditions, none)
    if not trajectories:
        none = jnp.zeros(conditions.is_human.shape[:1], bool)
        conditions = conditioning.keep_trajectories(conditions, none)
    return conditions


def _concatenate(bound: list[BoundConditions]) -> BoundConditions:
    """Along the batch, which is the second axis of what every layer has its own of."""

    def join(name: str):
        axis = 1 if name in ("motion_maps", "keys_values") else 0
        parts = (getattr(item, name) for item in bound)
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *parts)

    return BoundConditions(*(join(name) for name in BoundConditions._fields))


def to_uint8(video: Float[np.ndarray, "*b f height width 3"]) -> UInt8[np.ndarray, "*b f h w 3"]:
    """A video in [0, 1] as bytes."""
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)
