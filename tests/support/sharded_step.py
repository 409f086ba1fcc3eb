"""A whole training step of a tiny Tora2 with every part, to be run on meshes of fake devices."""

import functools
import json
import socket
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from tora2_jax import config as settings
from tora2_jax import parallel
from tora2_jax.config.train import MeshConfig, OptimConfig, TrainConfig
from tora2_jax.train import state as train_state
from tora2_jax.train.stages import diffusion

LAYERS = 2


def tiny_config(**changes) -> TrainConfig:
    """8 samples of 23 tokens, which no number of parts divides, and 4 heads."""
    model = settings.toy()
    model.frames, model.height, model.width = 9, 32, 48
    model.max_entities, model.max_references = 3, 2
    model.transformer = settings.TransformerConfig(
        num_layers=LAYERS,
        num_heads=4,
        head_dim=16,
        time_embed_dim=16,
        text_embed_dim=16,
        max_text_length=5,
        in_channels=4,
        out_channels=4,
        patch_size=4,
        sample_frames=9,
        sample_height=8,
        sample_width=12,
    )
    model.vae = settings.VAEConfig(
        channels=(4, 4, 4), layers_per_block=1, norm_groups=2, latent_channels=4
    )
    model.text = settings.T5Config(
        vocab_size=32, width=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32
    )
    model.dino = settings.DINOv2Config(
        image_size=28, position_grid=2, width=16, num_layers=1, num_heads=2
    )
    model.face = settings.ArcFaceConfig(
        image_size=16, layers=(1, 1, 1, 1), widths=(8, 8, 8, 8), embedding=8
    )
    model.object = settings.ObjectEncoderConfig(image_size=32, layers=(1, 1, 1, 1), base_width=2)
    model.motion = settings.MotionConfig(width=8, blocks_per_layer=1, norm_groups=8)
    model.personalization = settings.PersonalizationConfig(
        width=16, queries=3, num_layers=1, num_heads=2, head_dim=8, cross_heads=2, cross_head_dim=8
    )
    model.binding = settings.BindingConfig(
        num_heads=2, head_dim=8, word_tokens=2, frequencies=2, contrast_width=8
    )
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1)
    base = {"stage": "tora2", "batch_size": 8, "steps": 10, "model": model, "optim": optim}
    return TrainConfig(**(base | changes))


@functools.cache
def _shapes(description: str) -> dict[str, jax.ShapeDtypeStruct]:
    return diffusion.example_shapes(settings.from_dict(TrainConfig, json.loads(description)))


def random_batch(config: TrainConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of a batch, with entities, references, paths and words that are not there."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, leaf in _shapes(json.dumps(settings.to_dict(config))).items():
        shape = (config.batch_size, *leaf.shape)
        if leaf.dtype == bool:
            batch[name] = rng.random(shape) < 0.7
        elif np.issubdtype(leaf.dtype, np.integer):
            batch[name] = rng.integers(0, config.model.transformer.max_text_length, shape)
        elif name in ("splat", "path"):
            batch[name] = rng.random(shape).astype(np.float32)
        else:
            batch[name] = rng.standard_normal(shape).astype(np.float32)
        batch[name] = batch[name].astype(leaf.dtype)
    batch["on"][:, -1], batch["reference_mask"][:, -1] = False, False  # a padding entity
    return batch


def random_weights(rng: np.random.Generator, path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Of sizes with which a network neither explodes nor forgets its input."""
    values = rng.standard_normal(leaf.shape).astype(np.float32)
    if path.endswith((".scale", ".var")):
        return 1 + 0.1 * np.abs(values)
    if path.endswith("kernel"):
        return values / np.float32(np.prod(leaf.shape[-2:-1]) ** 0.5)
    return values * np.float32(0.2)


def random_state(config: TrainConfig, mesh: Mesh, seed: int = 0) -> tuple:
    """Graph and state; no array is as it starts, so that every path has a gradient."""
    graph, target = train_state.abstract_state(config, diffusion.STAGE, mesh)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        return jax.device_put(random_weights(rng, path, leaf).astype(leaf.dtype), leaf.sharding)

    made = {
        name: {path: fill(path, leaf) for path, leaf in getattr(target, name).items()}
        for name in ("trainable", "frozen", "statistics")
    }
    optimizer, average, step = jax.tree.map(
        lambda leaf: jax.device_put(
            rng.standard_normal(leaf.shape).astype(leaf.dtype), leaf.sharding
        ),
        (target.optimizer, target.average, target.step),
    )
    return graph, target._replace(**made, optimizer=optimizer, average=average, step=step)


def free_port() -> int:
    """For the processes of one machine to find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def mesh_of(data: int, fsdp: int, sequence: int, tensor: int) -> Mesh:
    """A mesh of the first fake devices."""
    return parallel.make_mesh(MeshConfig(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor))


@functools.cache
def _program(description: str, sizes: tuple[int, ...]):
    """Compiled once for all tests of a process."""
    config, mesh = settings.from_dict(TrainConfig, json.loads(description)), mesh_of(*sizes)
    graph, _ = train_state.abstract_state(config, diffusion.STAGE, mesh)
    step = partial(train_state.loss_and_gradients, config, diffusion.STAGE, graph)
    return jax.jit(step)


def run(
    config: TrainConfig, sizes: tuple[int, ...], state: train_state.TrainState
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of a state on a mesh, for the random batch."""
    mesh = mesh_of(*sizes)
    batch = parallel.global_batch(mesh, config.batch_size, random_batch(config))
    variables = state._replace(optimizer=(), average={})
    with parallel.use(mesh):
        program = _program(json.dumps(settings.to_dict(config)), sizes)
        (value, _), gradients = program(variables, batch)
    return float(value), jax.tree.map(np.asarray, gradients)


def loss_and_gradients(
    config: TrainConfig, sizes: tuple[int, ...]
) -> tuple[float, dict[str, np.ndarray]]:
    """Of the random state and batch, on a mesh."""
    return run(config, sizes, random_state(config, mesh_of(*sizes))[1])


def differences(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> list[tuple[float, str]]:
    """Relative L2 difference of every array, the largest first."""
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in expected.values()))

    def relative(path: str) -> float:
        size = max(np.linalg.norm(expected[path]), 1e-6 * norm)
        return float(np.linalg.norm(found[path] - expected[path]) / size)

    return sorted(((relative(path), path) for path in expected), reverse=True)
