"""Stage `motion_vae`: fine-tunes the VAE of flow pictures on crops of the flow of real clips.

It starts from a video VAE and keeps its scaling factor, which the trajectory extractor is used to.
"""

from typing import Any

import numpy as np
from flax import nnx

from tora2_jax.config.train import TrainConfig
from tora2_jax.data.clip_folder import ClipFolder, look_through, motion_of
from tora2_jax.data.loader import ENDLESS
from tora2_jax.errors import TrainError
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.parallel import processes
from tora2_jax.train.stage import Stage
from tora2_jax.train.stages.vae import loss
from tora2_jax.trajectory import optical_flow
from tora2_jax.trajectory.flow_color import color_flow


def build(config: TrainConfig, rngs: nnx.Rngs) -> CausalVAE:
    """A VAE for `config.weights.motion_vae` to fill."""
    return CausalVAE(config.model.vae, rngs=rngs)


class _FlowCrops:
    """Crops around something that moves, each from a clip drawn at random."""

    def __init__(self, config: TrainConfig):
        found = look_through(config.clips, config.model, config.cache_dir)
        self._config, self._folder = config, ClipFolder(config.clips, config.model, found)
        self._folder.warn()
        self._estimator = optical_flow.load_estimator(config.clips.estimator)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        clips = self._config.clips
        rng, start, number = self._draw(index)
        part = slice(start, start + clips.crop_frames)
        with self._folder.making_an_example():
            video = self._folder.read(number, part)
        flow = motion_of(video, clips, self._estimator, rng)
        # Most of a sparse picture is white and teaches little.
        moving = np.argwhere(flow.any((0, 3)))
        place = rng.choice(moving) if len(moving) else rng.integers(flow.shape[1:3])
        place -= rng.integers(clips.crop_size, size=2)
        top, left = np.clip(place, 0, np.array(flow.shape[1:3]) - clips.crop_size)
        rows, columns = slice(top, top + clips.crop_size), slice(left, left + clips.crop_size)
        moves = flow[:, rows, columns].any(-1, keepdims=True)
        return {"video": color_flow(flow)[:, rows, columns], "foreground": moves}

    def describe(self, index: int) -> dict[str, Any]:
        """Which clip a crop is of, and the first of its frames in the file."""
        _, start, number = self._draw(index)
        clip = self._folder.clips[number]
        return {"clip": clip.name, "frame": clip.frames[start]}

    def _draw(self, index: int) -> tuple[np.random.Generator, int, int]:
        """The chance of a crop, its first frame in the model's time, and the clip."""
        rng = np.random.Generator(np.random.Philox(key=[self._config.seed, index]))
        start = rng.integers(self._config.model.frames - self._config.clips.crop_frames + 1)
        return rng, int(start), int(rng.integers(len(self._folder)))


def _crops(config: TrainConfig) -> tuple[_FlowCrops | None, list[str]]:
    """The examples, or what keeps them from being made."""
    try:
        return _FlowCrops(config), []
    except TrainError as error:
        return None, str(error).splitlines()


def source(config: TrainConfig) -> _FlowCrops:
    """Examples: `video [crop_frames, crop_size, crop_size, 3]` in [-1, 1], `foreground` where
    something moves. All processes must call it together.

    Raises:
        TrainError: lists everything that is wrong with the folder or the sizes of crops.
    """
    clips, model = config.clips, config.model
    # The decoder takes an even first chunk of latents for one that has a past.
    step, compression = 2 * model.vae.temporal_compression, model.spatial_compression
    faults = []
    if not 1 < clips.crop_frames <= model.frames or (clips.crop_frames - 1) % step:
        faults.append(f"config.clips.crop_frames: must be {step} * k + 1, up to {model.frames}")
    if clips.crop_size > min(model.height, model.width) or clips.crop_size % compression:
        faults.append(
            f"config.clips.crop_size: must be a multiple of {compression}, up to "
            f"{min(model.height, model.width)}"
        )
    crops, wrong = processes.first_then_others(lambda: _crops(config))  # others find what is kept
    faults += wrong
    if faults:
        raise TrainError(f"stage {config.stage} cannot start:\n  " + "\n  ".join(faults))
    return crops


STAGE = Stage(build=build, source=source, loss=loss, components={"motion_vae": ".*"})
