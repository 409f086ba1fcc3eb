"""Conversion table of DINOv2, with and without registers (Hugging Face's names).

The published files and newer in-memory models name the attention maps differently; both fit.
"""

from convert.engine import LINEAR, Rule, Transform, ignored
from tora2_jax.config import DINOv2Config

_LINEARS = {
    r"attention\.(?:attention\.query|q_proj)": "attention.query",
    r"attention\.(?:attention\.key|k_proj)": "attention.key",
    r"attention\.(?:attention\.value|v_proj)": "attention.value",
    r"attention\.(?:output\.dense|o_proj)": "attention.output",
    r"mlp\.fc1": "mlp_in",
    r"mlp\.fc2": "mlp_out",
}
_NORMS = {r"norm1": "norm_attention", r"norm2": "norm_mlp"}
_BATCHED = Transform(lambda value: value[0], lambda value: value[None])
_SCALES = {r"layer_scale1": "scale_attention", r"layer_scale2": "scale_mlp"}


def rules(config: DINOv2Config) -> list[Rule]:
    """The whole table; the mask token of pre-training is dropped."""
    embeddings = r"embeddings\."
    projection = rf"{embeddings}patch_embeddings\.projection\."
    table = [
        Rule(rf"{projection}weight", "patch_embedding.kernel", patch_kernel(config.patch_size)),
        Rule(rf"{projection}bias", "patch_embedding.bias"),
        Rule(rf"{embeddings}cls_token", "class_token", _BATCHED),
        Rule(rf"{embeddings}register_tokens", "registers", _BATCHED),
        Rule(rf"{embeddings}position_embeddings", "positions", _BATCHED),
        ignored(rf"{embeddings}mask_token"),
        Rule(r"layernorm\.weight", "norm.scale"),
        Rule(r"layernorm\.bias", "norm.bias"),
    ]
    prefix = r"encoder\.layer\.(?P<layer>\d+)\."
    for theirs, ours in _LINEARS.items():
        table.append(Rule(rf"{prefix}{theirs}\.weight", f"blocks.{ours}.kernel", LINEAR))
        table.append(Rule(rf"{prefix}{theirs}\.bias", f"blocks.{ours}.bias"))
    for theirs, ours in _NORMS.items():
        table.append(Rule(rf"{prefix}{theirs}\.weight", f"blocks.{ours}.scale"))
        table.append(Rule(rf"{prefix}{theirs}\.bias", f"blocks.{ours}.bias"))
    for theirs, ours in _SCALES.items():
        table.append(Rule(rf"{prefix}{theirs}\.lambda1", f"blocks.{ours}"))
    return table


def patch_kernel(patch: int) -> Transform:
    """Strided convolution [out, 3, patch, patch] <-> linear map on patches (row, column, RGB)."""
    return Transform(
        lambda weight: weight.transpose(2, 3, 1, 0).reshape(patch * patch * 3, -1),
        lambda kernel: kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1),
    )
