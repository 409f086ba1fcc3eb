"""What Tora adds to CogVideoX, as its diffusers version names it; the rest is CogVideoX's table.

SAT checkpoints call `fuser.N` `mixins.adaln_layer.fuser_list.N`; the tensors are the same.
"""

from convert import cogvideox_transformer
from convert.engine import CONV1D, CONV2D, Rule, Transform, ignored
from tora2_jax.config import ModelConfig, MotionConfig

_BLOCK = r"traj_extractor\.body\.(?P<layer>\d+)\."
_FUSER = r"fuser\.(?P<layer>\d+)\."
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
        ignored(r"traj_extractor\..*\.num_batches_tracked"),
    ]


def model_rules(config: ModelConfig) -> list[Rule]:
    """The table of a whole Tora transformer, for `tora2_jax.models.tora2.Tora2`."""
    base = [
        rule if rule.target is None else rule._replace(target=f"transformer.{rule.target}")
        for rule in cogvideox_transformer.rules(config.transformer)
    ]
    return [*base, *rules(config.motion)]


def _convolution(source: str, target: str, transform: Transform = CONV2D) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}.kernel", transform),
        Rule(rf"{source}\.bias", f"{target}.bias"),
    ]
