"""Clips of the toy world taken once through the frozen networks and kept on disk.

The frozen networks never change during a stage, so what they make of a clip is a constant
(`Conditions` can be cached); encoding it again at every step would cost more than training.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from tora2_jax import conditioning, config
from tora2_jax.data import world

CHUNK = 16


def fingerprint(model: config.ModelConfig, world_config, size: int, weights: list[str]) -> str:
    """Identifies what a pool holds: sizes, world and the bytes of the frozen weights."""
    digest = hashlib.sha256()
    parts = {name: config.to_dict(getattr(model, name)) for name in ("vae", "dino", "face")}
    parts |= {"object": config.to_dict(model.object), "binding": model.binding.word_tokens}
    parts |= {"world": config.to_dict(world_config), "size": size}
    parts |= {"padding": [model.max_entities, model.max_references]}
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


def build(
    directory: Path, model: config.ModelConfig, world_config, size: int, networks, tokenizer
) -> None:
    """Encode clips 0..size-1 of the world into `directory`; an interrupted build goes on.

    Args:
        directory: Where the arrays go; `pool.json` appears when all are written.
        model: Sizes.
        world_config: Which world.
        size: Number of clips.
        networks: `FrozenNetworks` with the weights of this model.
        tokenizer: From `text.load_tokenizer`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    progress = directory / "progress.json"
    start = json.loads(progress.read_text())["done"] if progress.exists() else 0
    graph, state = nnx.split(networks)

    @jax.jit
    def encode(state, inputs, video):
        return _features(nnx.merge(graph, state), model, inputs, video)

    arrays: dict[str, np.memmap] = {}
    for first in tqdm(range(start, size, CHUNK), "encoding clips", disable=None):
        # The last chunk is filled up by wrapping round, so that one compiled shape serves all.
        rows = [(first + offset) % size for offset in range(CHUNK)]
        records = [world.render_clip(world_config, row) for row in rows]
        inputs = conditioning.inputs_from_records(model, tokenizer, records)
        video = np.stack([record.video for record in records]).astype(np.float32) / 127.5 - 1
        features = jax.tree.map(np.asarray, encode(state, inputs, video))
        count = min(CHUNK, size - first)
        for name, values in features.items():
            if name not in arrays:
                arrays[name] = _open(directory / f"{name}.npy", size, values)
            arrays[name][first : first + count] = values[:count]
            arrays[name].flush()
        progress.write_text(json.dumps({"done": first + count}))
    (directory / "pool.json").write_text(json.dumps({"size": size}))


def _features(networks, model, inputs, video) -> dict[str, jax.Array]:
    visual = conditioning.encode_visual(networks, model, inputs)
    arrays = {name: value for name, value in visual._asdict().items() if value is not None}
    tokens = {name: getattr(inputs, name) for name in conditioning.Tokens._fields}
    return {"latents": networks.vae.encode_latents(video), **arrays, **tokens}


def _open(path: Path, size: int, values: np.ndarray) -> np.memmap:
    if path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, "w+", values.dtype, (size, *values.shape[1:]))
