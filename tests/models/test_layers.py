"""Stacks and scans, names of arrays, attention over empty sets and in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tora2_jax.models.cross_attention import PersonalizationCrossAttention
from tora2_jax.models.layers import attention as attention_module
from tora2_jax.models.layers import basic
from tora2_jax.models.layers.attention import attention

LAYERS = 3


class _Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm = basic.LayerNorm(4, rngs=rngs)
        self.linear = basic.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.linear(self.norm(x)))


@pytest.fixture
def blocks():
    return nnx.jit(lambda: basic.stack(_Layer, LAYERS, nnx.Rngs(0)))()


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("rematerialize", ["none", "full", "save_attention", "offload"])
def test_scan_equals_a_python_loop_in_values_and_gradients(blocks, rematerialize, unroll):
    x = _normal(2, 3, 4)
    offsets = jnp.arange(LAYERS, dtype=jnp.float32)

    def scanned(blocks):
        def step(block, carry, offset):
            carry = block(carry) + offset
            return carry, carry.mean()

        carry, means = basic.scan(step, blocks, x, offsets, rematerialize, unroll)
        return (carry**2).sum() + means.sum()

    def looped(blocks):
        carry, total = x, 0.0
        for index in range(LAYERS):
            carry = basic.map_arrays(lambda a, i=index: a[i], blocks)(carry) + offsets[index]
            total = total + carry.mean()
        return (carry**2).sum() + total

    value, gradient = nnx.jit(nnx.value_and_grad(scanned))(blocks)
    expected, expected_gradient = nnx.jit(nnx.value_and_grad(looped))(blocks)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient,
        expected_gradient,
    )


def test_layers_of_a_stack_differ(blocks):
    kernel = basic.flat_variables(blocks)["linear.kernel"]
    assert kernel.shape == (LAYERS, 4, 4)
    assert not np.allclose(kernel[0], kernel[1])


def test_variables_travel_by_name(blocks):
    arrays = basic.flat_variables(blocks)
    abstract = nnx.eval_shape(lambda: basic.stack(_Layer, LAYERS, nnx.Rngs(0)))
    assert set(basic.flat_variables(abstract)) == set(arrays)
    basic.assign_variables(abstract, arrays)
    for name, value in basic.flat_variables(abstract).items():
        np.testing.assert_array_equal(value, arrays[name])


def test_every_array_that_does_not_fit_is_named(blocks):
    arrays = basic.flat_variables(blocks)
    del arrays["norm.bias"]
    arrays["linear.kernel"] = jnp.zeros((4, 4))
    arrays["other"] = jnp.zeros(1)
    with pytest.raises(ValueError, match=r"(?s)missing: norm.bias.*linear.kernel.*unknown: other"):
        basic.assign_variables(blocks, arrays)


def test_half_precision_norms_keep_float32_statistics():
    norm = basic.LayerNorm(512, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    x = jnp.asarray(100 + _normal(4, 512), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), exact, atol=0.02)


def test_patches_go_there_and_back():
    latents = jnp.asarray(_normal(2, 4, 6, 8, 3))
    tokens = basic.patchify(latents, (2, 3, 4))
    assert tokens.shape == (2, 24, 24)
    np.testing.assert_array_equal(basic.unpatchify(tokens, (2, 3, 4), 2, 2), latents)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _qkv(n=7, m=5):
    lengths = enumerate((n, m, m))
    return [jnp.asarray(_normal(2, length, 3, 8, seed=seed)) for seed, length in lengths]


def test_attention_is_softmax_attention():
    query, key, value = _qkv()
    logits = np.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bmhd->bnhd", weights, value)
    np.testing.assert_allclose(jax.jit(attention)(query, key, value), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [None, (2, 1, 1, 5), (2, 3, 7, 5), (7, 5)])
def test_chunks_change_neither_values_nor_gradients(shape):
    inputs = _qkv()
    mask = None if shape is None else jnp.asarray(_normal(*shape) > 0)

    def loss(inputs, max_logits):
        return (attention(*inputs, mask, max_logits=max_logits) ** 2).sum()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    whole = gradient(inputs, 2**26)
    chunked = gradient(inputs, 2 * 3 * 5 * 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), chunked, whole
    )


def test_an_empty_key_set_gives_exactly_zero_with_finite_gradients():
    inputs = _qkv()
    mask = jnp.array([False, True])[:, None, None, None]

    def loss(inputs):
        output = attention(*inputs, mask)
        return output.sum(), output

    (_, output), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    assert (output[0] == 0).all() and (output[1] != 0).any()
    for gradient in gradients:
        assert np.isfinite(gradient).all() and (gradient[0] == 0).all()
    assert (attention(inputs[0], inputs[1][:, :0], inputs[2][:, :0]) == 0).all()


@pytest.mark.parametrize(("n", "m"), [(7, 5), (6, 5), (7, 4), (6, 4)])
def test_odd_lengths_reach_cudnn_as_even_ones_with_the_same_numbers(monkeypatch, n, m):
    inputs, seen = _qkv(n, m), []
    by_xla = jax.nn.dot_product_attention

    def cudnn(query, key, value, *, implementation, **options):
        seen.append((implementation, query.shape[1], key.shape[1], value.shape[1]))
        return by_xla(query, key, value, implementation="xla", **options)

    def loss(*inputs):
        output = attention(*inputs, scale=0.7)
        return (output**2).sum(), output

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    expected = gradient(*inputs)
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    monkeypatch.setattr(attention_module, "_cudnn_can", lambda *_: True)
    found = gradient(*inputs)
    assert seen == [("cudnn", n + n % 2, m + m % 2, m + m % 2)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


@pytest.fixture
def cross_attention():
    return nnx.jit(lambda: PersonalizationCrossAttention(12, 10, 3, 4, rngs=nnx.Rngs(0)))()


def _attend(module, tokens, keys, mask):
    return module(tokens, module.keys_values(keys, mask), mask)


def test_cross_attention_starts_at_zero(cross_attention):
    tokens, keys, mask = jnp.ones((2, 4, 12)), jnp.ones((2, 3, 10)), jnp.ones((2, 3), bool)
    output = nnx.jit(_attend)(cross_attention, tokens, keys, mask)
    assert (output == 0).all()


def test_absent_keys_reach_neither_output_nor_gradients(cross_attention):
    cross_attention.output.kernel[...] = _normal(12, 12)
    tokens = jnp.asarray(_normal(2, 4, 12))
    keys = _normal(2, 3, 10)
    keys[:, 2], keys[0] = np.nan, np.nan
    mask = jnp.array([[False, False, False], [True, True, False]])

    def loss(module, keys, mask):
        output = _attend(module, tokens, keys, mask)
        return (output**2).sum(), output

    with_gradient = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, output), gradients = with_gradient(cross_attention, keys, mask)
    assert (output[0] == 0).all() and (output[1] != 0).any()
    assert (gradients[1][0] == 0).all() and (gradients[1][1, 2] == 0).all()
    (_, short), short_gradients = with_gradient(cross_attention, keys[:, :2], mask[:, :2])
    np.testing.assert_allclose(output, short, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients[0], short_gradients[0]
    )


def test_streams_for_shapes_give_the_shapes_of_others():
    def make(rngs):
        stacked = basic.stack(lambda own: nnx.Linear(3, 5, rngs=own), 4, rngs)
        return nnx.List([stacked, nnx.Conv(2, 6, (3,), rngs=rngs)])

    ours, theirs = (
        basic.flat_variables(nnx.eval_shape(lambda rngs=rngs: make(rngs())))
        for rngs in (basic.shape_rngs, lambda: nnx.Rngs(0))
    )
    assert {path: (x.shape, x.dtype) for path, x in ours.items()} == {
        path: (x.shape, x.dtype) for path, x in theirs.items()
    }
    assert ours["0.kernel"].shape == (4, 3, 5)


@pytest.mark.parametrize("chunks", [100, 455])
def test_gradients_of_chunks_add_up_in_float32(chunks):
    shape = (1, chunks, 1, 8)
    keys = jax.random.split(jax.random.key(chunks), 4)
    query, key, value = (
        jax.random.normal(one, shape, jnp.bfloat16).astype(jnp.float32) for one in keys[:3]
    )
    weight = jax.random.uniform(keys[3], shape)  # of one sign, so that a bias shows

    def gradients(dtype, max_logits):
        def loss(key, value):
            cast = (array.astype(dtype) for array in (query, key, value))
            output = attention(*cast, max_logits=max_logits)
            return (output.astype(jnp.float32) * weight).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(key, value)

    exact = gradients(jnp.float32, chunks**2)
    chunked = gradients(jnp.bfloat16, chunks)  # one query a chunk
    for ours, theirs in zip(chunked, exact, strict=True):
        assert jnp.linalg.norm(ours - theirs) < 0.004 * jnp.linalg.norm(theirs)
    ratio = chunked[1].sum() / exact[1].sum()
    assert abs(float(ratio) - 1) < 0.001
