"""Conversion table of the object encoder: torchvision's ResNet names (bottleneck variants)."""

from convert.engine import CONV2D, Rule, ignored
from tora2_jax.config import ObjectEncoderConfig

_CONVOLUTIONS = {
    r"conv1": "conv_reduce",
    r"conv2": "conv_space",
    r"conv3": "conv_expand",
    r"downsample\.0": "shortcut",
}
_NORMS = {
    r"bn1": "norm_reduce",
    r"bn2": "norm_space",
    r"bn3": "norm_expand",
    r"downsample\.1": "norm_shortcut",
}


def rules(config: ObjectEncoderConfig) -> list[Rule]:
    """The whole table; the classifier on top is dropped."""
    table = [Rule(r"conv1\.weight", "stem.kernel", CONV2D), *batch_norm("bn1", "norm_stem")]
    for stage in range(len(config.layers)):
        source, target = rf"layer{stage + 1}\.(\d+)\.", rf"stages.{stage}.\1."
        table += block_rules(source, target, _CONVOLUTIONS, _NORMS)
    return [*table, ignored(r"fc\..*"), ignored(r".*num_batches_tracked")]


def block_rules(
    source: str, target: str, convolutions: dict[str, str], norms: dict[str, str]
) -> list[Rule]:
    """Rules of one stage's blocks, from the names of the parts there to the names here."""
    table = [
        Rule(rf"{source}{theirs}\.weight", f"{target}{ours}.kernel", CONV2D)
        for theirs, ours in convolutions.items()
    ]
    for theirs, ours in norms.items():
        table += batch_norm(source + theirs, target + ours)
    return table


def batch_norm(source: str, target: str) -> list[Rule]:
    """The four tensors of a batch norm."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(rf"{source}\.{theirs}", f"{target}.{ours}") for theirs, ours in names.items()]
