"""What Tora adds to CogVideoX, as its diffusers version names it; the rest is CogVideoX's table."""

import re
from collections.abc import Mapping

import numpy as np

from convert.engine.rules import CONV1D, CONV2D, Rule, Spec, Transform, ignored
from convert.families import cogvideox_transformer
from tora2_jax.config import ModelConfig, MotionConfig

_BLOCK = r"traj_extractor\.body\.(?P<layer>\d+)\."
_FUSER = r"fuser\.(?P<layer>\d+)\."
_COUNTER = r"traj_extractor\..*\.num_batches_tracked"
_ORDINALS = {"1": "first", "2": "second"}
_STATISTICS = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}


def rules(
    config: MotionConfig,
    extractor: str = "trajectory_extractor",
    fuser: str = "transformer.blocks.fuser",
) -> list[Rule]:
    """The table.

    Args:
        config: the same names serve every size.
        extractor: path of the `TrajectoryExtractor`.
        fuser: path of the fusers, stacked over the layers.
    """
    del config
    table = _convolution(r"traj_extractor\.conv_in", f"{extractor}.conv_in")
    for number, ordinal in _ORDINALS.items():
        table += _convolution(rf"{_BLOCK}block{number}", f"{extractor}.blocks.{ordinal}_conv")
        table += [
            Rule(rf"{_BLOCK}bn{number}\.{theirs}", f"{extractor}.blocks.{ordinal}_norm.{ours}")
            for theirs, ours in _STATISTICS.items()
        ]
    for name in ("gamma", "beta"):
        spatial, temporal = f"{name}_spatial", f"{name}_temporal"
        table += _convolution(rf"{_FUSER}flow_{spatial}", f"{fuser}.{spatial}")
        table += _convolution(rf"{_FUSER}flow_{temporal}", f"{fuser}.{temporal}", CONV1D)
    return [
        *table,
        Rule(rf"{_FUSER}flow_cond_norm\.weight", f"{fuser}.norm.scale"),
        Rule(rf"{_FUSER}flow_cond_norm\.bias", f"{fuser}.norm.bias"),
        ignored(_COUNTER),
    ]


def model_rules(config: ModelConfig) -> list[Rule]:
    """The table of a whole Tora transformer, for `tora2_jax.models.tora2.Tora2`."""
    base = [
        rule if rule.target is None else rule._replace(target=f"transformer.{rule.target}")
        for rule in cogvideox_transformer.rules(config.transformer)
    ]
    return [*base, *rules(config.motion)]


def motion_config(tensors: Mapping[str, Spec], num_layers: int) -> MotionConfig | None:
    """The sizes that a Tora's tensors have; None if there is no trajectory extractor among them.

    Args:
        tensors: Shapes by the names of the diffusers version; a name may have a prefix.
        num_layers: Of the transformer.
    """
    first = [spec for name, spec in tensors.items() if name.endswith("traj_extractor.conv_in.bias")]
    found = (re.search(r"traj_extractor\.body\.(\d+)\.", name) for name in tensors)
    blocks = {match[1] for match in found if match}
    if not first and not blocks:
        return None
    width = first[0].shape[0] if first and first[0].shape else MotionConfig().width
    return MotionConfig(width=width, blocks_per_layer=max(1, -(-len(blocks) // num_layers)))


def counters(config: ModelConfig) -> dict[str, np.ndarray]:
    """How many batches each norm of the extractor has seen: the release asks, no number depends."""
    count = config.transformer.num_layers * config.motion.blocks_per_layer
    return {
        f"traj_extractor.body.{block}.bn{number}.num_batches_tracked": np.zeros((), np.int64)
        for block in range(count)
        for number in _ORDINALS
    }


def _convolution(source: str, target: str, transform: Transform = CONV2D) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}.kernel", transform),
        Rule(rf"{source}\.bias", f"{target}.bias"),
    ]
