"""Conversion table of ArcFace's improved residual network (insightface's PyTorch names)."""

import numpy as np

from convert.engine import CONV2D, Rule, Transform, ignored
from convert.object_encoder import batch_norm, block_rules
from tora2_jax.config import ArcFaceConfig
from tora2_jax.models.arcface import map_size

_CONVOLUTIONS = {r"conv1": "conv_in", r"conv2": "conv_out", r"downsample\.0": "shortcut"}
_NORMS = {
    r"bn1": "norm_in",
    r"bn2": "norm_middle",
    r"bn3": "norm_out",
    r"downsample\.1": "norm_shortcut",
}


def rules(config: ArcFaceConfig) -> list[Rule]:
    """The whole table."""
    table = [
        Rule(r"conv1\.weight", "stem.kernel", CONV2D),
        *batch_norm("bn1", "norm_stem"),
        Rule(r"prelu\.weight", "activation.slope"),
        *batch_norm("bn2", "norm_map"),
        Rule(r"fc\.weight", "embedding.kernel", flattened_map(config.widths[-1], map_size(config))),
        Rule(r"fc\.bias", "embedding.bias"),
        *batch_norm("features", "norm_embedding"),
        ignored(r".*num_batches_tracked"),
    ]
    for stage in range(len(config.layers)):
        source, target = rf"layer{stage + 1}\.(\d+)\.", rf"stages.{stage}.\1."
        table += block_rules(source, target, _CONVOLUTIONS, _NORMS)
        table.append(Rule(rf"{source}prelu\.weight", f"{target}activation.slope"))
    return table


def flattened_map(channels: int, size: int) -> Transform:
    """Linear on a flattened square map: channels are outermost in PyTorch and innermost here."""

    def forward(weight: np.ndarray) -> np.ndarray:
        weight = weight.reshape(-1, channels, size, size)
        return weight.transpose(2, 3, 1, 0).reshape(size * size * channels, -1)

    def backward(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.reshape(size, size, channels, -1)
        return kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)

    return Transform(forward, backward)
