"""Diffusers' AutoencoderKLCogVideoX <-> `tora2_jax.models.vae.vae.CausalVAE`."""

from convert.engine.rules import CONV2D, CONV3D, COPY, Rule
from tora2_jax.config import VAEConfig

_RESNETS = (
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down_blocks.\1.resnets.\2"),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)", r"decoder.up_blocks.\1.resnets.\2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.(\d+)", r"\1.mid_resnets.\2"),
)
_RESAMPLERS = (
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv", r"encoder.down_blocks.\1.downsample"),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.conv", r"decoder.up_blocks.\1.upsample"),
)


def rules(config: VAEConfig) -> list[Rule]:
    """The table; the same for every size."""
    del config
    table = []
    for source, target in _RESNETS:
        table += _convolution(rf"{source}\.(conv[12])\.conv", rf"{target}.\3")
        table += _convolution(rf"{source}\.conv_shortcut", rf"{target}.shortcut")
        table += _norm(rf"{source}\.(norm[12])", rf"{target}.\3")
    for source, target in _RESAMPLERS:
        table += _convolution(source, target, CONV2D)
    table += _convolution(r"(encoder|decoder)\.(conv_in|conv_out)\.conv", r"\1.\2")
    table += _norm(r"(encoder|decoder)\.norm_out", r"\1.norm_out")
    return table


def _convolution(source: str, target: str, transform=CONV3D) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"{target}.kernel", transform),
        Rule(rf"{source}\.bias", f"{target}.bias", COPY),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    """A group norm, plain (encoder) or steered by the latents (decoder)."""
    return [
        Rule(rf"{source}\.weight", f"{target}.scale", COPY),
        Rule(rf"{source}\.bias", f"{target}.bias", COPY),
        Rule(rf"{source}\.norm_layer\.weight", f"{target}.norm.scale", COPY),
        Rule(rf"{source}\.norm_layer\.bias", f"{target}.norm.bias", COPY),
        *_convolution(rf"{source}\.conv_y\.conv", f"{target}.to_scale"),
        *_convolution(rf"{source}\.conv_b\.conv", f"{target}.to_shift"),
    ]
