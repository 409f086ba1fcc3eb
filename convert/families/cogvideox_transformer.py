"""CogVideoX's transformer as diffusers publishes it (`CogVideoXTransformer3DModel`)."""

from convert.engine.rules import COPY, LINEAR, Rule, Transform, ignored
from tora2_jax.config import TransformerConfig

_BLOCK_LINEAR = {
    r"norm1\.linear": "attention_norm.modulation",
    r"norm2\.linear": "feed_forward_norm.modulation",
    r"attn1\.to_q": "attention.query",
    r"attn1\.to_k": "attention.key",
    r"attn1\.to_v": "attention.value",
    r"attn1\.to_out\.0": "attention.output",
    r"ff\.net\.0\.proj": "feed_forward.expand",
    r"ff\.net\.2": "feed_forward.project",
}
_BLOCK_NORM = {
    r"norm1\.norm": "attention_norm.norm",
    r"norm2\.norm": "feed_forward_norm.norm",
    r"attn1\.norm_q": "attention.query_norm",
    r"attn1\.norm_k": "attention.key_norm",
}
_TOP_LINEAR = {
    r"patch_embed\.text_proj": "text_projection",
    r"time_embedding\.linear_1": "time_embedding.expand",
    r"time_embedding\.linear_2": "time_embedding.project",
    r"ofs_embedding\.linear_1": "ofs_embedding.expand",
    r"ofs_embedding\.linear_2": "ofs_embedding.project",
    r"norm_out\.linear": "output_modulation",
    r"proj_out": "output_projection",
}
_TOP_NORM = {r"norm_final": "final_norm", r"norm_out\.norm": "output_norm"}

# [1, n, c] -> [n, c]
POSITIONS = Transform(lambda x: x.reshape(x.shape[1:]), lambda x: x[None])


def patch_convolution(patch: int) -> Transform:
    """[out, in, patch, patch] -> [in * patch * patch, out]."""
    return Transform(
        lambda x: x.reshape(len(x), -1).T, lambda x: x.T.reshape(x.shape[1], -1, patch, patch)
    )


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}.kernel", LINEAR),
        Rule(rf"{source}\.bias", f"{target}.bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}.scale"),
        Rule(rf"{source}\.bias", f"{target}.bias"),
    ]


def rules(config: TransformerConfig) -> list[Rule]:
    """The table for any of the five published configurations."""
    patch = LINEAR if config.patch_size_t else patch_convolution(config.patch_size)
    table = [
        Rule(r"patch_embed\.proj\.weight", "patch_embedding.kernel", patch),
        Rule(r"patch_embed\.proj\.bias", "patch_embedding.bias", COPY),
    ]
    if config.learned_positions:
        table.append(Rule(r"patch_embed\.pos_embedding", "positions", POSITIONS))
    else:
        table.append(ignored(r"patch_embed\.pos_embedding"))
    layer = r"transformer_blocks\.(?P<layer>\d+)\."
    for source, target in _BLOCK_LINEAR.items():
        table += _linear(layer + source, f"blocks.{target}")
    for source, target in _BLOCK_NORM.items():
        table += _norm(layer + source, f"blocks.{target}")
    for source, target in _TOP_LINEAR.items():
        table += _linear(source, target)
    for source, target in _TOP_NORM.items():
        table += _norm(source, target)
    return table
