"""Random numbers do not depend on JAX_ENABLE_X64, which scientific users set in their shells."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax import diffusion
from tora2_jax.config import toy
from tora2_jax.config.train import TrainConfig
from tora2_jax.evaluation.bench import networks
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.train import state
from tora2_jax.train.stages import diffusion as stage

ROOT = Path(__file__).resolve().parents[2]
# Function of jax.random -> position of the type among its arguments.
TYPED = {"normal": 2, "uniform": 2, "truncated_normal": 4, "randint": 4, "gumbel": 2}


def _both(make):
    """What a function gives without and with 64-bit types."""
    found = make()
    with jax.enable_x64(True):
        return found, make()


def _assert_same(first, second):
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_draws_of_a_step_are_the_same_with_64_bit_types():
    config = TrainConfig(stage="tora2", model=toy())
    batch = {"latents": jnp.zeros((8, 5, 6, 6, 8)), "on": jnp.zeros((8, 3, 5), bool)}
    first, second = _both(lambda: stage.draw(config, batch, jax.random.key(3)))
    _assert_same(first, second)
    assert first.noise.dtype == jnp.float32 and first.timestep.dtype == jnp.int32


def test_noise_of_a_sampler_step_is_the_same_with_64_bit_types():
    keys = (jax.random.key(7), 4, (2, 3))
    _assert_same(*_both(lambda: diffusion.step_noise(*keys)))


def test_faults_of_the_benchs_pictures_are_the_same_with_64_bit_types():
    images = np.random.default_rng(0).random((2, 48, 48, 3), np.float32)
    first, second = _both(lambda: networks.degrade(jnp.asarray(images), jax.random.key(1)))
    assert first.dtype == second.dtype
    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["tora2", "face", "dino", "object", "localizer", "judge", "vae"])
def test_initial_weights_are_the_same_with_64_bit_types(name):
    config = TrainConfig(stage=name, model=toy())
    config.model.transformer.num_layers = 1
    module = state.find_stage(config)

    def draw() -> dict[str, jax.Array]:
        model = module.build(config, nnx.Rngs(0))
        return {
            path: value
            for path, value in flat_variables(model).items()
            if jnp.issubdtype(value.dtype, jnp.number)
        }

    first, second = _both(jax.jit(draw))
    _assert_same(first, second)


@pytest.mark.parametrize("package", ["tora2_jax", "convert"])
def test_every_draw_names_its_type(package):
    untyped = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = _random_function(node.func) if isinstance(node, ast.Call) else None
            if name is not None and not _names_a_type(name, node):
                untyped.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not untyped


def _random_function(function: ast.expr) -> str | None:
    written = ast.unparse(function)
    return written.removeprefix("jax.random.") if written.startswith("jax.random.") else None


def _names_a_type(name: str, call: ast.Call) -> bool:
    if name == "bernoulli":  # draws in the type of the probability
        return ast.unparse(call.args[1]).startswith("jnp.float32(")
    given = len(call.args) > TYPED.get(name, -1)
    return given or any(keyword.arg == "dtype" for keyword in call.keywords)
