"""Clips taken once through the frozen networks and kept on disk.

The frozen networks never change during a stage, so what they make of a clip is a constant
(`Conditions` can be cached); encoding it again at every step would cost more than training.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import UInt8
from tqdm import tqdm

from tora2_jax import conditioning, config
from tora2_jax.data import world
from tora2_jax.data.loader import example_or_next
from tora2_jax.data.reference_augmentation import guard_record
from tora2_jax.faces import FaceDetector
from tora2_jax.models.prior import stored_priors
from tora2_jax.reference_inputs import reference_arrays
from tora2_jax.train_config import ReferenceGuardConfig
from tora2_jax.types import Inputs

_FORMAT = 2  # to be raised when other numbers are kept of the same clips


class Examples(Protocol):
    """What a pool encodes, by position: each a pure function of the settings and the index."""

    at_once: int  # how many go through the networks together
    identity: dict[str, Any]  # JSON data: all that the examples depend on, besides the model

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]:
        """Unbatched inputs and the video that belongs to them."""
        ...


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
        self.identity = {"world": config.to_dict(world_config), "size": size}
        if guards is not None:
            self.identity |= {"guards": config.to_dict(guards), "seed": seed}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]:
        record = world.render_clip(self._world, index)
        if self._guards is not None:
            limit = self._model.max_references
            record = guard_record(record, self._guards, self._seed, draw=0, limit=limit)
        inputs = conditioning.record_inputs(self._model, self._tokenizer, record, self._detector)
        return inputs, record.video


def fingerprint(model: config.ModelConfig, examples: Examples, weights: list[str]) -> str:
    """Identifies what a pool holds: sizes, examples and the bytes of the frozen weights."""
    digest = hashlib.sha256()
    parts = {name: config.to_dict(getattr(model, name)) for name in ("vae", "dino", "face")}
    parts |= {"object": config.to_dict(model.object), "binding": model.binding.word_tokens}
    for name in stored_priors(model):
        parts[f"stored_{name}"] = config.to_dict(getattr(model, f"stored_{name}"))
    parts |= examples.identity
    parts |= {"padding": [model.max_entities, model.max_references], "format": _FORMAT}
    digest.update(json.dumps(parts, sort_keys=True).encode())
    for path in map(Path, weights):
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in filter(Path.is_file, files):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Pool:
    """Encoded clips as memory-mapped arrays, one file per field."""

    def __init__(self, directory: Path):
        self.size = json.loads((directory / "pool.json").read_text())["size"]
        self._arrays = {path.stem: np.load(path, mmap_mode="r") for path in directory.glob("*.npy")}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.array(array[index]) for name, array in self._arrays.items()}


def build(directory: Path, model: config.ModelConfig, examples: Examples, networks) -> None:
    """Encode all examples into `directory`; an interrupted build goes on.

    An example that cannot be made is replaced by the next that can: `pool.json` says which.

    Args:
        directory: Where the arrays go; `pool.json` appears when all are written.
        model: Sizes.
        examples: What to encode.
        networks: `FrozenNetworks` with the weights of this model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    progress = directory / "progress.json"
    before = json.loads(progress.read_text()) if progress.exists() else {"done": 0}
    start, replaced = before["done"], before.get("replaced", {})
    size, chunk = len(examples), examples.at_once
    graph, state = nnx.split(networks)

    @jax.jit
    def encode(state, inputs, video):
        return _features(nnx.merge(graph, state), model, inputs, video)

    arrays: dict[str, np.memmap] = {}
    for first in tqdm(range(start, size, chunk), "encoding clips", disable=None):
        # The last chunk is filled up by wrapping round, so that one compiled shape serves all.
        wanted = [(first + offset) % size for offset in range(chunk)]
        rows, used = zip(*(example_or_next(examples, index) for index in wanted), strict=True)
        replaced |= {str(bad): good for bad, good in zip(wanted, used, strict=True) if bad != good}
        inputs = conditioning.batch_inputs([row for row, _ in rows])
        video = np.stack([pixels for _, pixels in rows]).astype(np.float32) / 127.5 - 1
        features = jax.tree.map(np.asarray, encode(state, inputs, video))
        count = min(chunk, size - first)
        for name, values in features.items():
            if name not in arrays:
                arrays[name] = _open(directory / f"{name}.npy", size, values)
            arrays[name][first : first + count] = values[:count]
            arrays[name].flush()
        _write(progress, {"done": first + count, "replaced": replaced})
    if replaced:
        logging.warning("%d of %d examples are replaced by others", len(replaced), size)
    _write(directory / "pool.json", {"size": size, "replaced": replaced})


def _write(path: Path, content: dict) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(content))
    aside.replace(path)


def shapes(networks, model: config.ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What a pool holds of each clip, without making one; `networks` may be abstract."""
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype),
        _input_shapes(model),
    )
    video = jax.ShapeDtypeStruct((1, model.frames, model.height, model.width, 3), np.float32)
    graph, state = nnx.split(networks)
    found = jax.eval_shape(
        lambda state, inputs, video: _features(nnx.merge(graph, state), model, inputs, video),
        state,
        inputs,
        video,
    )
    return {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in found.items()}


def _input_shapes(model: config.ModelConfig) -> Inputs:
    size, entities = (model.frames, model.height, model.width), (model.max_entities,)
    t, h, w = model.token_grid(*size)
    words = (*entities, model.binding.word_tokens)
    references = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), reference_arrays(model, [])
    )
    return Inputs(
        token_ids=jax.ShapeDtypeStruct((model.transformer.max_text_length,), np.int32),
        flow_video=jax.ShapeDtypeStruct((*size, 3), np.float32),
        splat=jax.ShapeDtypeStruct((*entities, t, h, w), np.float32),
        path=jax.ShapeDtypeStruct((*entities, t, 4), np.float32),
        on=jax.ShapeDtypeStruct((*entities, t), bool),
        word_index=jax.ShapeDtypeStruct(words, np.int32),
        word_mask=jax.ShapeDtypeStruct(words, bool),
        image=jax.ShapeDtypeStruct((*size[1:], 3), np.float32) if model.takes_image else None,
        **references,
    )


def _features(networks, model, inputs, video) -> dict[str, jax.Array]:
    visual = conditioning.encode_visual(networks, model, inputs)
    arrays = {name: value for name, value in visual._asdict().items() if value is not None}
    tokens = {name: getattr(inputs, name) for name in conditioning.Tokens._fields}
    return {"latents": networks.vae.encode_latents(video), **arrays, **tokens}


def _open(path: Path, size: int, values: np.ndarray) -> np.memmap:
    if path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, "w+", values.dtype, (size, *values.shape[1:]))
