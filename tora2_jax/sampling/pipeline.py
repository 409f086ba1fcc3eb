"""The public way to make videos: `Tora2Pipeline.from_checkpoint(folder).generate(request)`."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float
from numpy.typing import ArrayLike

from tora2_jax import conditioning, diffusion
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.models.tora2 import Tora2
from tora2_jax.models.vae import tiling
from tora2_jax.models.vae.tiling import VAEMemory
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.references.faces import FaceDetector, InsightFaceDetector
from tora2_jax.request import Request, RequestError, for_each, load_requests, request_names
from tora2_jax.request.notes import request_notes
from tora2_jax.sampling.guidance import Branch, branches_of, concatenate, withhold
from tora2_jax.sampling.programs import noise_of, programs_of
from tora2_jax.sampling.progress import Listeners, Report
from tora2_jax.sampling.result import Sample, StepCallback, watcher
from tora2_jax.sampling.settings import (
    DEFAULTS,
    SampleSettings,
    seed_problems,
    setting_problems,
    stored_settings,
)
from tora2_jax.system import hub
from tora2_jax.system.finite import NotFiniteError, not_finite, reason
from tora2_jax.types import Array, BoundConditions, Conditions, Inputs
from tora2_jax.weights.bundle import LoadedModel, load_bundle

_LOG = logging.getLogger(__name__)
Source = Request | str | Path  # a request, or where its file is


class Tora2Pipeline:
    """A model with its frozen networks and tokenizer, ready to sample."""

    def __init__(
        self,
        loaded: LoadedModel,
        vae_memory: VAEMemory = "whole",
        detector: FaceDetector | None = None,
        settings: SampleSettings = DEFAULTS,
    ):
        """Everything with its weights.

        `vae_memory` says how to decode, see `models.vae.tiling`; `detector` finds faces in
        references; `settings` are those of `generate` if it is given none.

        Raises:
            ValueError: if the VAE's picture cannot be cut into tiles and `vae_memory` asks for it.
        """
        self.config, self.tokenizer = loaded.config, loaded.tokenizer
        self.vae_memory, self.detector = vae_memory, detector
        self.settings = settings
        self._vae = loaded.networks.vae
        self._tiles = tiling.DEFAULT_TILES
        if vae_memory == "tiled":
            self._tiles = tiling.tiles_of(self.config.vae, self._vae.spatial_compression)
        self._networks = nnx.split((loaded.networks, loaded.text))
        self._model = nnx.split(loaded.model)
        self.programs = programs_of(self.config, self._model[0], self._networks[0])

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        dtype: DTypeLike = jnp.float32,
        vae_memory: VAEMemory = "whole",
        face_models: str | Path | None = None,
    ) -> "Tora2Pipeline":
        """Load a bundle, a converted folder or a training directory.

        Args:
            directory: The checkpoint; or its name on the hub, `ORGANIZATION/NAME[@REVISION]`.
            dtype: Of the computation.
            vae_memory: `chunked` and `tiled` decode in less memory; `tiled` with other numbers
                where the picture is larger than a tile.
            face_models: A folder with a face detector of insightface, read when a reference needs
                it; see docs/references.md.

        Raises:
            CheckpointError: names everything that is missing or does not fit.
            FaceModelError: there is no face detector in that folder.
        """
        detector = None if face_models is None else InsightFaceDetector(face_models)
        folder = hub.local(directory)
        loaded = load_bundle(folder, dtype)
        settings = stored_settings(folder, loaded.config.diffusion)
        return cls(loaded, vae_memory, detector, settings)

    def generate(
        self,
        request: Source | Sequence[Source],
        *,
        seed: int = 0,
        settings: SampleSettings | None = None,
        initial_latents: Array | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Report | None = None,
        callback: StepCallback | None = None,
    ) -> Sample:
        """Make the video of one request, or those of several of the same size as one batch.

        Args:
            request: From `request.load_request`, or a path to its file; or a list of them.
            seed: Determines every random draw; request i of a list has the seed `seed + i`, and
                its video is the one that it has alone with that seed, up to rounding.
            settings: Steps, guidance, scheduler; None: as the checkpoint's folder says in
                `generation_config.json`, or else the paper's.
            initial_latents: `[b, t_lat, h_lat, w_lat, latent]` instead of random noise.
            progress: Called with (steps done, steps) when the device has done a step.
            report: Called with (phase of `sampling.progress.PHASES`, parts done, parts), from 0 on.
            callback: Called with each `Step`, which can show a preview; if it returns False,
                sampling stops. The device waits for it, as it does not for the two above.

        Raises:
            ValueError: lists every setting that cannot be used.
            RequestError: lists every problem of every request.
            NotFiniteError: a number is not finite; says where that began.
            SamplingStopped: `callback` has returned False.
        """
        single = isinstance(request, Request | str | Path)
        settings = settings or self.settings
        self._check(settings, [seed])
        requests, inputs = self.prepare([request] if single else request)
        sample = self.generate_batch(
            inputs,
            seeds=[seed + index for index in range(len(requests))],
            settings=settings,
            initial_latents=initial_latents,
            progress=progress,
            report=report,
            callback=callback,
        )
        return sample._replace(requests=tuple(requests), model=self.config)

    def prepare(
        self,
        sources: Sequence[Source],
        say: Callable[[str], None] | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple[list[Request], Inputs]:
        """Requests or their files, checked, and as one batch of numbers.

        Args:
            sources: The requests.
            say: Told, one line each, what was decided about references, and what of a request is
                taken otherwise than may be expected (`request_notes`). By default both are logged,
                the latter as warnings.
            names: What messages call the requests, if not by their files.

        Raises:
            RequestError: lists every problem of every request.
            FaceModelError: the face models cannot be used.
        """
        names = request_names(sources) if names is None else names

        def make(named: tuple[str, Request]) -> Inputs:
            name, request = named
            for note in request_notes(request, self.config, self.tokenizer):
                (say or _LOG.warning)(f"{name}: {note}")
            return conditioning.request_inputs(
                self.config,
                self.tokenizer,
                request,
                self.detector,
                lambda note: (say or _LOG.info)(f"{name}: {note}"),
            )

        requests = load_requests(sources, self.config, self.tokenizer, names=names)
        samples, problems = for_each(names, list(zip(names, requests, strict=True)), make)
        if problems:
            raise RequestError(problems)
        return requests, conditioning.batch_inputs(samples)

    def generate_batch(
        self,
        inputs: Inputs,
        *,
        seeds: list[int],
        settings: SampleSettings | None = None,
        initial_latents: Array | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Report | None = None,
        callback: StepCallback | None = None,
    ) -> Sample:
        """Make one video for every row of `inputs`; row i depends on `seeds[i]` alone.

        The other arguments are those of `generate`.

        Raises:
            ValueError: lists every setting that cannot be used; or the seeds or the initial latents
                do not fit the inputs.
            NotFiniteError: a number is not finite; says where that began.
        """
        settings = settings or self.settings
        self._check(settings, seeds)
        listeners = Listeners(progress, report)
        batch, frames, height, width = inputs.flow_video.shape[:4]
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for {batch} requests; give one per request")
        shape = self.latent_shape(batch, frames, height, width)
        if initial_latents is not None and initial_latents.shape != shape:
            raise ValueError(f"initial latents are {initial_latents.shape}; they must be {shape}")
        branches, weights = branches_of(settings)
        bound = self._conditions(inputs, branches, listeners)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        start = initial_latents
        if start is None:
            start = noise_of(keys, 0, shape)
        start = jnp.array(start, jnp.float32)  # a copy: the first step takes its memory
        self._refuse_not_finite({"initial latents": start}, "as they are given")
        discarded = shape[1] - self.config.latent_grid(frames, height, width)[0]

        def decode(latents: jax.Array, told=lambda done, total: None) -> np.ndarray:
            return tiling.decode_latents(
                self._vae, latents[:, discarded:], self.vae_memory, self._tiles, told
            )

        after = watcher(callback, settings.steps, decode)
        latents = self._sample(start, bound, weights, keys, settings, listeners, after)
        video = decode(latents, listeners.decoded)
        self._refuse_frames(video)
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

    @property
    def vae(self) -> CausalVAE:
        """The network of videos, with its weights."""
        return self._vae

    def conditions(self, inputs: Inputs) -> Conditions:
        """What the network is given for a batch of inputs, beside noise and timestep."""
        return self.programs.encode(self._networks[1], inputs)[0]

    def abstract_step(
        self, inputs: Inputs, settings: SampleSettings = DEFAULTS
    ) -> tuple[Callable, tuple]:
        """The program of one sampling step and its arguments as shapes; weights may be shapes, too.

        The first argument is the state of the network, as it was given.
        """
        branches, weights = branches_of(settings)
        batch, frames, height, width = inputs.flow_video.shape[:4]

        def prepare(networks, model, inputs):
            conditions, null = self.programs.encode(networks, inputs)
            latents = jnp.zeros(self.latent_shape(batch, frames, height, width), jnp.float32)
            state = diffusion.SamplerState(latents, latents)
            return (
                state,
                self._bound(model, conditions, null, branches),
                jax.random.split(jax.random.key(0), batch),
            )

        state, bound, keys = jax.eval_shape(prepare, self._networks[1], self._model[1], inputs)
        row = diffusion.StepCoefficients(*[np.float32(1)] * len(diffusion.StepCoefficients._fields))
        return self.programs.step, (self._model[1], state, bound, weights(1.0), row, keys, 1)

    def _check(self, settings: SampleSettings, seeds: Sequence[int]) -> None:
        problems = setting_problems(settings, self.config.diffusion)
        told = [f"settings.{name}: {problem}" for name, problem in problems.items()]
        told += [f"seed: {problem}" for problem in seed_problems(seeds)]
        if told:
            raise ValueError("cannot be sampled:\n  " + "\n  ".join(told))

    def _weights(self) -> dict[str, jax.Array]:
        """All of them by the path that a message gives."""
        networks, text = nnx.merge(*self._networks)
        own = {f"text.{path}": value for path, value in flat_variables(text).items()}
        return flat_variables(self.model) | own | flat_variables(networks)

    def _refuse_not_finite(self, arrays: dict[str, Any], where: str) -> None:
        if faulty := not_finite(arrays):
            names = ", ".join(faulty)
            raise NotFiniteError(f"{names}: not finite {where}; {reason(self._weights())}")

    def _refuse_frames(self, video: Float[np.ndarray, "b f height width 3"]) -> None:
        faulty = np.argwhere(~np.isfinite(video).all((2, 3, 4)))
        if len(faulty):
            row, frame = faulty[0]
            raise NotFiniteError(
                f"requests[{row}]: the video is not finite from frame {frame} on, though its "
                f"latents are: the VAE makes it so; {reason(self._weights())}"
            )

    def _bound(
        self, model_state, conditions: Conditions, null: jax.Array, branches: list[Branch]
    ) -> BoundConditions:
        """The conditions of all evaluations of a step on one batch axis."""
        seen = {}
        for branch in branches:
            withheld = branch[1:]
            if withheld not in seen:
                seen[withheld] = self.programs.bind(model_state, withhold(conditions, *withheld))
        null = self.programs.project(model_state, null)
        return concatenate(
            [
                seen[branch[1:]] if branch.caption else seen[branch[1:]]._replace(text=null)
                for branch in branches
            ]
        )

    def _conditions(
        self, inputs: Inputs, branches: list[Branch], listeners: Listeners
    ) -> BoundConditions:
        """What every step is given, checked on its way."""
        listeners.encoded(0)
        conditions, null = self.programs.encode(self._networks[1], inputs)
        made = conditioning.to_arrays(conditions) | {"null text": null}
        self._refuse_not_finite(made, "before the first step, where the frozen networks make them")
        listeners.encoded(1)
        bound = self._bound(self._model[1], conditions, null, branches)
        self._refuse_not_finite(
            bound._asdict(), "before the first step, where the model binds them"
        )
        listeners.encoded(2)
        return bound

    def _sample(
        self, latents, bound, weights, keys, settings, listeners, after: Callable | None
    ) -> jax.Array:
        """The steps; the device waits for `after`, see `result.watcher`."""
        config = self.config.diffusion
        scheduler = settings.scheduler or config.scheduler
        table = diffusion.step_coefficients(config, settings.steps, scheduler)
        scales = np.full(settings.steps, settings.guidance)
        if settings.dynamic_guidance:
            scales = diffusion.dynamic_guidance(settings.guidance, table.timestep, settings.steps)
        state, before = diffusion.SamplerState(latents, jnp.zeros_like(latents)), None
        listeners.sampled(0, settings.steps)
        for index in range(settings.steps):
            row = diffusion.StepCoefficients(*(np.float32(values[index]) for values in table))
            state, finite = self.programs.step(
                self._model[1], state, bound, weights(scales[index]), row, keys, index + 1
            )
            # The device has its next step before the host waits for the last one.
            if before is not None:
                self._finish_step(index, table.timestep, before, listeners)
            before = finite
            if after is not None:
                self._finish_step(index + 1, table.timestep, finite, listeners)
                after(index + 1, state.previous_clean)
                before = None
        if before is not None:
            self._finish_step(settings.steps, table.timestep, before, listeners)
        return state.latents

    def _finish_step(self, step: int, times: np.ndarray, finite: ArrayLike, listeners) -> None:
        """Waits for a step, counted from 1."""
        rows = np.flatnonzero(~np.asarray(finite))
        if len(rows):
            names = ", ".join(f"requests[{row}]" for row in rows)
            raise NotFiniteError(
                f"{names}: the latents are not finite from step {step} of {len(times)} on "
                f"(timestep {times[step - 1]}); {reason(self._weights())}"
            )
        listeners.sampled(step, len(times))
