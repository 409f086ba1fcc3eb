"""Weights of the T5 v1.1 encoder, as transformers' `T5EncoderModel` names them."""

from convert.engine import LINEAR, Rule, ignored
from tora2_jax.config import T5Config

_BLOCK = r"encoder\.block\.(?P<layer>\d+)\.layer\."


def rules(config: T5Config) -> list[Rule]:
    """The table; also takes a whole T5 v1.1, of which the decoder is dropped."""
    del config  # the names are the same for every size
    attention = [
        Rule(
            rf"{_BLOCK}0\.SelfAttention\.{theirs}\.weight",
            f"blocks.attention.{ours}.kernel",
            LINEAR,
        )
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))
    ]
    mlp = [
        Rule(rf"{_BLOCK}1\.DenseReluDense\.{theirs}\.weight", f"blocks.mlp.{ours}.kernel", LINEAR)
        for theirs, ours in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))
    ]
    return [
        Rule(r"shared\.weight", "token_embedding.embedding"),
        Rule(
            # Only the first block stores the bias; all blocks use it.
            r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
            "relative_bias.embedding",
        ),
        Rule(rf"{_BLOCK}0\.layer_norm\.weight", "blocks.attention_norm.scale"),
        Rule(rf"{_BLOCK}1\.layer_norm\.weight", "blocks.mlp_norm.scale"),
        *attention,
        *mlp,
        Rule(r"encoder\.final_layer_norm\.weight", "final_norm.scale"),
        ignored(r"encoder\.embed_tokens\.weight"),  # the same array as shared.weight
        ignored(r"(decoder\..*|lm_head\.weight)"),
    ]
