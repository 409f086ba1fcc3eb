"""Clips of the toy world as examples for the pool."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tora2_jax import conditioning, config
from tora2_jax.config.train import ReferenceGuardConfig
from tora2_jax.data.reference_augmentation import guard_record
from tora2_jax.references.faces import FaceDetector, detector_identity
from tora2_jax.types import Inputs
from tora2_jax.world import clips as world


class WorldExamples:
    """Clips 0..size-1 of the toy world.

    Args:
        model: Sizes.
        tokenizer: From `text.load_tokenizer`.
        world_config: Which world.
        size: Number of clips.
        detector: Finds faces where `model.face_detector` needs a network.
        guards: How references are drawn and augmented; None: as the world renders them.
        seed: Of the guards.
    """

    at_once = 16

    def __init__(
        self,
        model: config.ModelConfig,
        tokenizer,
        world_config,
        size: int,
        *,
        detector: FaceDetector | None = None,
        guards: ReferenceGuardConfig | None = None,
        seed: int = 0,
    ):
        self._model, self._tokenizer, self._world = model, tokenizer, world_config
        self._size, self._detector = size, detector
        self._guards, self._seed = guards, seed

    @property
    def identity(self) -> dict[str, Any]:
        """See `Examples`; the inputs of three clips stand for what the code makes of the rest."""
        settings = config.to_dict(self._world)
        if settings["spread"] == 1:  # pools from before it could be set are found
            del settings["spread"]
        known = {"world": settings, "size": self._size}
        known["vocabulary"] = sorted(self._tokenizer.vocabulary().items())
        known["face_detector"] = detector_identity(self._model.face_detector, self._detector)
        if self._guards is not None:
            known |= {"guards": config.to_dict(self._guards), "seed": self._seed}
        probes = sorted({0, self._size // 2, self._size - 1})
        return known | {"inputs": [_digest(self[index][0]) for index in probes]}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]:
        record = world.render_clip(self._world, index)
        if self._guards is not None:
            limit = self._model.max_references
            record = guard_record(record, self._guards, self._seed, draw=0, limit=limit)
        inputs = conditioning.record_inputs(self._model, self._tokenizer, record, self._detector)
        return inputs, record.video

    def describe(self, index: int) -> dict[str, Any]:
        """Which clip it is."""
        return {"clip": world.clip_name(self._world, index)}


def _digest(inputs: Inputs) -> str:
    """Of names, shapes, types and bytes: the sizes of tokens and of the text show in them, too."""
    digest = hashlib.sha256()
    for name, value in inputs._asdict().items():
        array = None if value is None else np.ascontiguousarray(value)
        described = None if array is None else (array.shape, str(array.dtype))
        digest.update(f"{name} {described}".encode())
        digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()[:16]
