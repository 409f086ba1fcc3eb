"""`python -m convert dinov2`: DINOv2 of Hugging Face, with and without registers -> our weights.

The published files and newer in-memory models name the attention maps differently; both fit. So do
models with a classifier on top, which is dropped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoints import encoders
from convert.engine.rules import LINEAR, Part, Rule, Transform, ignored
from convert.engine.setting_table import Part as SettingPart
from tora2_jax.config import DINOv2Config
from tora2_jax.config import encoders as encoder_presets
from tora2_jax.models.encoders.dinov2 import DINOv2
from tora2_jax.models.layers.basic import shape_rngs

_ADVICE = "take the folder of the same model that transformers loads"
FREE = ("image_size",)  # positions are interpolated, so any will do

_LINEARS = {
    r"attention\.(?:attention\.query|q_proj)": "attention.query",
    r"attention\.(?:attention\.key|k_proj)": "attention.key",
    r"attention\.(?:attention\.value|v_proj)": "attention.value",
    r"attention\.(?:output\.dense|o_proj)": "attention.output",
}
_MLP = {
    "gelu": {r"mlp\.fc1": "mlp_in", r"mlp\.fc2": "mlp_out"},
    "swiglu": {
        r"mlp\.gate_proj": "mlp_gate",
        r"mlp\.up_proj": "mlp_in",
        r"mlp\.(?:weights_out|down_proj)": "mlp_out",
    },
}
_NORMS = {r"norm1": "norm_attention", r"norm2": "norm_mlp"}
_BATCHED = Transform(lambda value: value[0], lambda value: value[None])
_SCALES = {r"layer_scale1": "scale_attention", r"layer_scale2": "scale_mlp"}
_BACKBONE = r"(?:|dinov2\.|dinov2_with_registers\.)"  # the latter two under a classifier


def _faults(values: dict[str, Any]) -> list[str]:
    width, heads, image = (values[name] for name in ("width", "num_heads", "image_size"))
    faults = []
    if width % heads:
        faults.append(f"num_attention_heads {heads} must divide hidden_size {width}")
    if image < values["patch_size"]:
        faults.append(f"image_size {image} is smaller than patch_size {values['patch_size']}")
    return faults


_PLAIN = SettingPart(
    "",
    encoders.CONFIG,
    ("dinov2",),
    {
        "hidden_size": ("width", 768),
        "num_hidden_layers": ("num_layers", 12),
        "num_attention_heads": ("num_heads", 12),
        "mlp_ratio": ("mlp_ratio", 4),
        "layer_norm_eps": ("norm_eps", 1e-6),
        "image_size": ("image_size", 224),
        "patch_size": ("patch_size", 14),
        "use_swiglu_ffn": ("swiglu", False),
    },
    {"hidden_act": "gelu", "num_channels": 3, "qkv_bias": True},
    check=_faults,
    strict=False,
)
_REGISTERS = _PLAIN._replace(
    classes=("dinov2_with_registers",),
    settings=_PLAIN.settings
    | {"patch_size": ("patch_size", 16), "num_register_tokens": ("num_registers", 4)},
)


def convert_encoder(source: str | Path, destination: str | Path) -> list[str]:
    """Converts a folder (or a file beside its `config.json`) for `config.weights.dino`.

    Args:
        source: As people download it; only local files are read.
        destination: Must not exist.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            model.
        FolderError: the destination cannot be written.
    """
    source, problems = Path(source), []
    settings = read_settings(encoders.read_config(source, problems), problems)
    tensors = encoders.open_tensors(source, problems)
    if tensors is not None and any(re.search(r"(^|\.)blocks\.\d", name) for name in tensors.specs):
        problems.append(f"{source}: has the names of DINOv2's own release; {_ADVICE}")
        tensors = None  # every tensor would be said to be wrong
    encoder = None if settings is None else _encoder(settings)
    notes = encoders.write(source, destination, encoder, tensors, problems)
    return [
        *notes,
        f"{encoders.settings_note(encoder, encoder_presets.DINOV2)}; image_size is free",
    ]


def read_settings(data: Mapping[str, Any], problems: list[str]) -> DINOv2Config | None:
    """The settings in a `config.json`; None, and `problems` says why, if they cannot be used."""
    table = _REGISTERS if data.get("model_type") in _REGISTERS.classes else _PLAIN
    found = encoders.type_problems(data, _PLAIN.classes + _REGISTERS.classes)
    values = {} if found or not data else table.read(encoders.squares(data), found)
    problems += found
    if found or not values:
        return None
    feed_forward = "swiglu" if values.pop("swiglu") else "gelu"
    grid = values["image_size"] // values["patch_size"]
    return DINOv2Config(**values, feed_forward=feed_forward, position_grid=grid)


def _encoder(settings: DINOv2Config) -> encoders.Encoder:
    return encoders.Encoder(
        "dino", settings, lambda: DINOv2(settings, rngs=shape_rngs()), rules(settings), FREE
    )


def rules(config: DINOv2Config) -> list[Rule]:
    """The whole table; the mask token of pre-training is dropped."""
    embeddings = rf"{_BACKBONE}embeddings\."
    projection = rf"{embeddings}patch_embeddings\.projection\."
    table = [
        Rule(rf"{projection}weight", "patch_embedding.kernel", patch_kernel(config.patch_size)),
        Rule(rf"{projection}bias", "patch_embedding.bias"),
        Rule(rf"{embeddings}cls_token", "class_token", _BATCHED),
        Rule(rf"{embeddings}register_tokens", "registers", _BATCHED),
        Rule(rf"{embeddings}position_embeddings", "positions", _BATCHED),
        Rule(rf"{_BACKBONE}layernorm\.weight", "norm.scale"),
        Rule(rf"{_BACKBONE}layernorm\.bias", "norm.bias"),
        ignored(rf"{embeddings}mask_token"),
        ignored(r"classifier\.(weight|bias)"),
    ]
    prefix = rf"{_BACKBONE}encoder\.layer\.(?P<layer>\d+)\."
    for theirs, ours in (_LINEARS | _MLP[config.feed_forward]).items():
        table.append(Rule(rf"{prefix}{theirs}\.weight", f"blocks.{ours}.kernel", LINEAR))
        table.append(Rule(rf"{prefix}{theirs}\.bias", f"blocks.{ours}.bias"))
    if config.feed_forward == "swiglu":  # the published files hold gate and input as one map
        for chunk, ours in enumerate(("mlp_gate", "mlp_in")):
            source, part = rf"{prefix}mlp\.weights_in", Part((chunk,), 2)
            table.append(Rule(rf"{source}\.weight", f"blocks.{ours}.kernel", LINEAR, part))
            table.append(Rule(rf"{source}\.bias", f"blocks.{ours}.bias", part=part))
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
