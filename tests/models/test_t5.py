"""T5 encoder against transformers' T5EncoderModel, through the conversion table."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import T5Config as TorchConfig
from transformers import T5EncoderModel

from convert.engine.rules import ConversionError, convert, export
from convert.families import t5 as table
from tests.support.parity import (
    BLOCK_TOLERANCE,
    insensitive,
    numpy_state,
    randomize,
    relative_error,
)
from tora2_jax.config import T5Config
from tora2_jax.models.encoders.t5 import T5Encoder, relative_buckets
from tora2_jax.models.layers.basic import assign_variables, flat_variables, update_variables

TINY = T5Config(vocab_size=50, width=24, num_layers=2, num_heads=3, head_dim=16, mlp_dim=40)
# Long enough for the logarithmic distances; the second text is mostly padding.
TOKEN_IDS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 70))
TOKEN_IDS[1, 5:] = 0


def twin(config: T5Config) -> T5EncoderModel:
    return T5EncoderModel(
        TorchConfig(
            vocab_size=config.vocab_size,
            d_model=config.width,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            attn_implementation="eager",
        )
    )


def abstract(config: T5Config) -> T5Encoder:
    return nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def case():
    reference = randomize(twin(TINY), seed=3)
    with torch.no_grad():
        expected = reference(input_ids=torch.from_numpy(TOKEN_IDS)).last_hidden_state.numpy()
    variables = convert(table.rules(TINY), numpy_state(reference), flat_variables(abstract(TINY)))

    @jax.jit
    def forward(arrays):
        model = abstract(TINY)
        assign_variables(model, arrays)
        return model(jnp.asarray(TOKEN_IDS))

    return reference, variables, forward, expected


def test_matches_transformers(case):
    _, variables, forward, expected = case
    assert relative_error(forward(variables), expected) < BLOCK_TOLERANCE


def test_every_tensor_matters(case):
    _, variables, forward, expected = case
    assert insensitive(forward, variables, expected) == []


def test_table_is_strict_and_invertible(case):
    reference, variables, _, _ = case
    state = numpy_state(reference)
    back = export(table.rules(TINY), variables)
    assert set(state) - set(back) <= {"encoder.embed_tokens.weight"}
    assert all(np.array_equal(back[name], state[name]) for name in back)
    missing = "encoder.block.1.layer.0.SelfAttention.q.weight"
    broken = {name: value for name, value in state.items() if name != missing}
    broken["encoder.block.0.layer.0.SelfAttention.q.bias"] = np.zeros(3)
    with pytest.raises(ConversionError) as error:
        convert(table.rules(TINY), broken, flat_variables(abstract(TINY)))
    assert "q.bias" in str(error.value)
    assert "blocks.attention.query.kernel" in str(error.value)


def test_full_size_table():
    full = flat_variables(abstract(T5Config()))
    assert sum(int(np.prod(value.shape)) for value in full.values()) == 4_762_310_656
    config = T5Config(num_layers=2)
    with torch.device("meta"):
        tensors = twin(config).state_dict()
    # Two bytes per value and no layer beyond the second: the widths of XXL in a gigabyte.
    tensors = {
        name: np.broadcast_to(np.zeros((), np.float16), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    target = flat_variables(abstract(config))
    assert set(convert(table.rules(config), tensors, target)) == set(full)


def test_buckets_match_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    positions = torch.arange(300)
    expected = T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], True, 32, 128
    )
    assert np.array_equal(relative_buckets(300, 32, 128), expected.numpy())


def _run(arrays, dtype):
    model = nnx.eval_shape(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0), dtype=dtype))
    update_variables(model, {path: jnp.asarray(x) for path, x in arrays.items()}, keep_dtypes=False)
    return nnx.jit(lambda model: model(jnp.asarray(TOKEN_IDS)))(model)


def test_precision_decision(case):
    """float32 from bfloat16 weights equals the reference; bfloat16 loses in text and padding."""
    reference, variables, _, _ = case
    half = {path: x.astype(jnp.bfloat16) for path, x in variables.items()}
    rounded = copy.deepcopy(reference).to(torch.bfloat16)
    with torch.no_grad():
        theirs = rounded(input_ids=torch.from_numpy(TOKEN_IDS)).last_hidden_state.float().numpy()
        wide = rounded.float()(input_ids=torch.from_numpy(TOKEN_IDS)).last_hidden_state.numpy()
    assert relative_error(_run(half, jnp.float32), wide) < BLOCK_TOLERANCE
    padding = (1, slice(5, None))
    products = _run(half, jnp.bfloat16)
    assert products.dtype == jnp.float32
    for states in (products, theirs):
        assert relative_error(states[padding], wide[padding]) > 100 * BLOCK_TOLERANCE


def test_full_precision_is_asked_for_on_every_device():
    model = nnx.eval_shape(lambda: T5Encoder(TINY, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    with jax.default_matmul_precision("bfloat16"):
        jaxpr = jax.make_jaxpr(lambda state: nnx.merge(graph, state)(jnp.asarray(TOKEN_IDS)))(state)
    text = str(jaxpr)
    assert text.count("dot_general[") == text.count("Precision.HIGHEST, Precision.HIGHEST") > 0
