"""Clips taken once through the frozen networks and kept on disk.

The frozen networks never change during a stage, so what they make of a clip is a constant
(`Conditions` can be cached); encoding it again at every step would cost more than training.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from tora2_jax import conditioning, config, parallel
from tora2_jax.conditioning.references import reference_arrays
from tora2_jax.config.train import MeshConfig
from tora2_jax.data.loader import example_or_next
from tora2_jax.errors import TrainError
from tora2_jax.models.encoders.prior import stored_priors
from tora2_jax.parallel import processes
from tora2_jax.system import feedback
from tora2_jax.system.files import write_text, written_whole
from tora2_jax.system.finite import finite_rows, reason
from tora2_jax.system.lease import Lease
from tora2_jax.types import Inputs

_Row = tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]
_FORMAT = 2  # to be raised when other numbers are kept of the same clips


@runtime_checkable
class Examples(Protocol):
    """What a pool encodes, by position: each a pure function of the settings and the index."""

    at_once: int  # how many go through the networks of a device together
    identity: dict[str, Any]  # JSON data: all that the examples depend on, besides the model

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Inputs, UInt8[np.ndarray, "f height width 3"]]:
        """Unbatched inputs and the video that belongs to them."""
        ...

    def describe(self, index: int) -> dict[str, Any]:
        """JSON data that says what an example is made of, without making it."""
        ...


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
    """Encoded clips as memory-mapped arrays, one file per field.

    Args:
        directory: What `build` has filled.
        describe: That of the examples; None: nothing is known of a clip but its position.
    """

    def __init__(self, directory: Path, describe: Callable[[int], dict[str, Any]] | None = None):
        stored = json.loads((directory / "pool.json").read_text())
        self.size, self._directory, self._describe = stored["size"], directory, describe
        self._replaced = stored.get("replaced", {})
        self._arrays = {path.stem: np.load(path, mmap_mode="r") for path in directory.glob("*.npy")}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.array(array[index]) for name, array in self._arrays.items()}

    def __reduce__(self):
        """The folder alone: who unpickles it, as workers do, opens the files."""
        return Pool, (self._directory,)

    def describe(self, index: int) -> dict[str, Any]:
        """What a row is made of; `made_from` is the row that has taken its place, if any."""
        used = self._replaced.get(str(index), index)
        replaced = {} if used == index else {"made_from": used}
        return replaced | (self._describe(used) if self._describe else {})


class _Encoder:
    """The frozen networks on devices of this process; the program of a device is always the same.

    Args:
        model: Sizes.
        at_once: Clips that a device takes together.
        load: Makes `FrozenNetworks` with the weights of this model.
        devices: Of this process.
    """

    def __init__(
        self,
        model: config.ModelConfig,
        at_once: int,
        load: Callable[[], nnx.Module],
        devices: Sequence[jax.Device],
    ):
        self.size = at_once * len(devices)
        self._mesh = parallel.make_mesh(MeshConfig(data=len(devices)), list(devices))
        with parallel.use(self._mesh):
            graph, self._state = nnx.split(load())

        def encode(state, inputs, video):
            return _features(nnx.merge(graph, state), model, inputs, video)

        self._encode = jax.jit(encode)

    @property
    def weights(self) -> dict[str, jax.Array]:
        """Of the networks, by path."""
        flat = nnx.to_flat_state(self._state)
        return {".".join(map(str, path)): variable.get_value() for path, variable in flat}

    def shapes(self, row: _Row) -> dict[str, jax.ShapeDtypeStruct]:
        """What is kept of a batch of one."""
        return jax.eval_shape(self._encode, self._state, *_batch([row]))

    def __call__(self, rows: list[_Row]) -> dict[str, np.ndarray]:
        """The features of at most `size` clips; fewer are filled up, for there is one program."""
        batch = _batch(rows + rows[-1:] * (self.size - len(rows)))
        with parallel.use(self._mesh):
            placed = jax.device_put(batch, parallel.batch_sharding(self._mesh, self.size))
            features = self._encode(self._state, *placed)
        return {name: np.asarray(values)[: len(rows)] for name, values in features.items()}


def _batch(rows: list[_Row]) -> tuple[Inputs, Float[np.ndarray, "b f height width 3"]]:
    inputs = conditioning.batch_inputs([row for row, _ in rows])
    return inputs, np.stack([pixels for _, pixels in rows]).astype(np.float32) / 127.5 - 1


def build(
    directory: Path,
    model: config.ModelConfig,
    examples: Examples,
    load: Callable[[], nnx.Module],
    devices: Sequence[jax.Device],
) -> None:
    """Encode all examples into `directory`; an interrupted build goes on.

    All processes must call it together: each encodes a part, if all see the folder, else all. An
    example that cannot be made is replaced by the next that can: `pool.json` says which. Runs that
    need the same pool wait for the one that makes it.

    Args:
        directory: Where the arrays go; `pool.json` appears when all are written.
        model: Sizes.
        examples: What to encode.
        load: Makes `FrozenNetworks` with the weights of this model.
        devices: Of this process; as many are used as there is work for.

    Raises:
        TrainError: an example is refused, here or in another process.
    """
    with ExitStack() as stack:
        if processes.is_first() and not (directory / "pool.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lease(directory, wait=True))
        processes.wait_for_all()
        if processes.agree(not (directory / "pool.json").exists()):
            _build(directory, model, examples, load, devices)


def _build(directory: Path, model, examples: Examples, load, devices) -> None:
    """`build`, in a folder where nobody else does."""
    directory.mkdir(parents=True, exist_ok=True)  # each host its own, if there is no shared one
    count = jax.process_count()
    work = -(-len(examples) // (count * examples.at_once))
    with feedback.working("reading the frozen networks", silent=not processes.is_first()):
        encoder = _Encoder(model, examples.at_once, load, devices[: max(work, 1)])
    row, _ = processes.together(lambda: example_or_next(examples, 0))
    kept = encoder.shapes(row)
    processes.first_then_others(lambda: _create(directory, len(examples), kept))
    for parts in (count, 1):  # what others have written elsewhere lacks here
        left = np.flatnonzero(~_progress(directory, len(examples)).done)
        processes.wait_for_all()
        own = np.array_split(left, parts)[jax.process_index() % parts]
        _encode(directory, examples, encoder, own)
    processes.first_then_others(lambda: _finish(directory, examples))


def _encode(directory: Path, examples: Examples, encoder: _Encoder, own: np.ndarray) -> None:
    """Encodes these examples, step by step with the other processes."""
    progress = _progress(directory, len(examples), f"progress_{jax.process_index()}.json")

    def step(rows: np.ndarray) -> None:
        if not len(rows):
            return
        made, used = zip(*(example_or_next(examples, int(row)) for row in rows), strict=True)
        features = encoder(list(made))
        _refuse_not_finite(features, [examples.describe(index) for index in used], encoder)
        for name, values in features.items():
            _write_rows(directory / f"{name}.npy", rows, values)
        progress.done[rows] = True
        pairs = zip(rows.tolist(), used, strict=True)
        progress.replaced.update({str(bad): good for bad, good in pairs if bad != good})
        _save(directory / f"progress_{jax.process_index()}.json", progress)

    steps = processes.agree(-(-len(own) // encoder.size))
    silent = not processes.is_first() or not steps
    with feedback.bar("encoding clips", steps, "group", silent=silent) as bar:
        for number in range(steps):
            rows = own[number * encoder.size : (number + 1) * encoder.size]
            processes.together(partial(step, rows))
            bar.update()


def _refuse_not_finite(
    features: dict[str, np.ndarray], made_of: list[dict[str, Any]], encoder: _Encoder
) -> None:
    """Raises TrainError if features, one row per example, are not finite."""
    for name, values in features.items():
        if np.issubdtype(values.dtype, np.integer) or values.dtype == bool:
            continue
        rows = np.flatnonzero(~np.asarray(finite_rows(values)))
        if len(rows):
            example = " ".join(f"{key} {value}" for key, value in made_of[rows[0]].items())
            raise TrainError(
                f"{name} of {example}: the frozen networks make numbers that are not finite; "
                f"{reason(encoder.weights)}"
            )


class _Progress(NamedTuple):
    """What is written of a pool."""

    done: Bool[np.ndarray, " size"]
    replaced: dict[str, int]


def _progress(directory: Path, size: int, files: str = "progress_*.json") -> _Progress:
    """What all processes have written, or one of them, in this run and in earlier ones."""
    found = _Progress(np.zeros(size, bool), {})
    for path in directory.glob(files):
        stored = json.loads(path.read_text())
        for first, end in stored["done"]:
            found.done[first:end] = True
        found.replaced.update(stored["replaced"])
    return found


def _save(path: Path, progress: _Progress) -> None:
    edges = np.flatnonzero(np.diff(progress.done, prepend=False, append=False))
    done = {"done": edges.reshape(-1, 2).tolist(), "replaced": progress.replaced}
    write_text(path, json.dumps(done))


def _finish(directory: Path, examples: Examples) -> None:
    if (directory / "pool.json").exists():
        return
    size = len(examples)
    replaced = _progress(directory, size).replaced
    if replaced:
        logging.warning("%d of %d examples are replaced by others", len(replaced), size)
    told = sorted({*map(int, replaced), *replaced.values()})
    named = {index: examples.describe(index) for index in told}
    stored = {"size": size, "replaced": replaced, "examples": named}
    write_text(directory / "pool.json", json.dumps(stored))


def shapes(networks, model: config.ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What a pool holds of each clip, without making one; `networks` may be abstract."""
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), input_shapes(model)
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


def input_shapes(model: config.ModelConfig) -> Inputs:
    """`Inputs` of one sample of the model's own size, as shapes."""
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
    arrays = conditioning.to_arrays(conditioning.encode_visual(networks, model, inputs))
    tokens = {name: getattr(inputs, name) for name in conditioning.Tokens._fields}
    return {"latents": networks.vae.encode_latents(video), **arrays, **tokens}


def _create(directory: Path, size: int, kept: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Arrays for all examples, where an earlier run has left none."""
    for name, leaf in kept.items():
        path = directory / f"{name}.npy"
        if not path.exists():
            with written_whole(path) as aside:
                np.lib.format.open_memmap(aside, "w+", leaf.dtype, (size, *leaf.shape[1:]))


def _write_rows(path: Path, rows: np.ndarray, values: np.ndarray) -> None:
    """Not through mapped memory: on a network's file system that writes whole pages, with what
    this machine knows of the rows of others."""
    start = np.load(path, mmap_mode="r").offset
    with path.open("r+b") as file:
        for row, value in zip(rows.tolist(), values, strict=True):
            file.seek(start + row * value.nbytes)
            file.write(value.tobytes())
        file.flush()
        os.fsync(file.fileno())
