"""`python -m convert clip`: CLIP of Hugging Face, both towers and projections -> our weights."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.checkpoints import encoders
from convert.engine import folders, tokenizers
from convert.engine.rules import LINEAR, Rule, ignored
from convert.engine.setting_table import Part
from convert.families.dinov2 import patch_kernel
from tora2_jax.config import encoders as encoder_presets
from tora2_jax.config.encoders import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from tora2_jax.models.encoders.clip import CLIP, CLIP_MEAN, CLIP_STD
from tora2_jax.models.layers.basic import shape_rngs

_PREPROCESSOR = "preprocessor_config.json"


def _faults(values: dict[str, Any]) -> list[str]:
    width, heads = values["width"], values["num_heads"]
    faults = []
    if width % heads:
        faults.append(f"num_attention_heads {heads} must divide hidden_size {width}")
    if values.get("image_size", 1) < values.get("patch_size", 1):
        faults.append(
            f"image_size {values['image_size']} is smaller than patch_size {values['patch_size']}"
        )
    return faults


def _tower(settings: dict[str, tuple[str, Any]], heads: int, fixed: dict[str, Any]) -> Part:
    """The table of one tower: what both have, and what is its own."""
    shared = {
        "num_hidden_layers": ("num_layers", 12),
        "num_attention_heads": ("num_heads", heads),
        "hidden_act": ("activation", "quick_gelu"),
        "layer_norm_eps": ("norm_eps", 1e-5),
    }
    return Part(
        "",
        encoders.CONFIG,
        (),
        shared | settings,
        fixed,
        choices={"hidden_act": ("quick_gelu", "gelu")},
        check=_faults,
        strict=False,
    )


_VISION = _tower(
    {
        "image_size": ("image_size", 224),
        "patch_size": ("patch_size", 32),
        "hidden_size": ("width", 768),
        "intermediate_size": ("mlp_dim", 3072),
    },
    12,
    {"num_channels": 3},
)
_TEXT = _tower(
    {
        "vocab_size": ("vocab_size", 49408),
        "max_position_embeddings": ("max_length", 77),
        "hidden_size": ("width", 512),
        "intermediate_size": ("mlp_dim", 2048),
        "eos_token_id": ("eos_token_id", 49407),
    },
    8,
    {},
)
_WHOLE = Part("", encoders.CONFIG, ("clip",), {"projection_dim": ("embedding", 512)}, {})


def convert_encoder(source: str | Path, destination: str | Path) -> list[str]:
    """Converts a folder (or a file beside its `config.json`), with its tokenizer.

    Args:
        source: As people download it; only local files are read.
        destination: Must not exist. `evaluation.clip.load_clip` reads it.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            model.
        FolderError: the destination cannot be written.
    """
    source, problems = Path(source), []
    folder = source if source.is_dir() else source.parent
    data = encoders.read_config(source, problems)
    settings = read_settings(data, problems)
    tensors = encoders.open_tensors(source, problems)
    if data.get("model_type") in _WHOLE.classes:
        problems += tokenizers.clip_problems(folder, settings and settings.text)
        problems += _preprocessor_problems(folder / _PREPROCESSOR, settings)
    encoder = None if settings is None else _encoder(settings)
    notes = encoders.write(source, destination, encoder, tensors, problems, tokenizer=folder)
    name = encoders.preset_name(settings, encoder_presets.CLIP, free=_end_of_text)
    return [*notes, f"these are the settings of encoders.{name}()"] if name else notes


def _end_of_text(settings: CLIPConfig) -> CLIPConfig:
    """The settings without the id that two spellings of the same published config differ in."""
    return replace(settings, text=replace(settings.text, eos_token_id=0))


def _encoder(settings: CLIPConfig) -> encoders.Encoder:
    return encoders.Encoder(
        "clip", settings, lambda: CLIP(settings, rngs=shape_rngs()), rules(settings)
    )


def read_settings(data: Mapping[str, Any], problems: list[str]) -> CLIPConfig | None:
    """The settings in a `config.json`; None, and `problems` says why, if they cannot be used."""
    found = encoders.type_problems(data, _WHOLE.classes)
    if data.get("model_type") in ("clip_vision_model", "clip_text_model"):
        found = [f"{found[0]}: it is one tower; a whole CLIP, with both, is needed"]
    if not data or found:
        problems += found
        return None
    vision = _read_tower(data, "vision", _VISION, found)
    text = _read_tower(data, "text", _TEXT, found)
    whole = {"projection_dim": data.get("projection_dim", 512)}
    embedding = _WHOLE.read(whole, found)["embedding"]
    problems += found
    if found:
        return None
    return CLIPConfig(
        vision=CLIPVisionConfig(**vision), text=CLIPTextConfig(**text), embedding=embedding
    )


def _read_tower(
    data: Mapping[str, Any], name: str, table: Part, problems: list[str]
) -> dict[str, Any]:
    """A tower's settings, or nothing where `problems` says that there are none.

    Older files have them twice. As in transformers, what stands in `NAME_config_dict` wins, and so
    do the defaults of what that leaves out.
    """
    given, winning = data.get(f"{name}_config"), data.get(f"{name}_config_dict")
    wrong = [x for x in (given, winning) if x is not None and not isinstance(x, dict)]
    if wrong or (given is None and winning is None):
        problems.append(f"{encoders.CONFIG}: {name}_config is missing or no object")
        return {}
    settings = dict(given or {})
    if winning is not None:
        settings |= {theirs: default for theirs, (_, default) in table.settings.items()} | winning
    return table.read(encoders.squares(settings), problems, f"{encoders.CONFIG}: {name}_config")


def _preprocessor_problems(path: Path, settings: CLIPConfig | None) -> list[str]:
    """Whether images are prepared otherwise than `evaluation.clip.preprocess` does, which has none.

    Nothing is said about a file that is not there.
    """
    if not path.is_file():
        return []
    problems: list[str] = []
    data = folders.read_json(path, problems)
    for name in ("do_resize", "do_center_crop", "do_normalize"):
        if data.get(name, True) is not True:
            problems.append(f"{path.name}: {name} is {data[name]!r}; only true is implemented")
    if data.get("resample", 3) != 3:
        problems.append(f"{path.name}: resample is {data['resample']!r}; only 3 is implemented")
    for name, wanted in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        if not _close(data.get(name, wanted), wanted):
            problems.append(
                f"{path.name}: {name} is {data[name]!r}; only CLIP's own is implemented"
            )
    for name in ("size", "crop_size"):
        sides = data.get(name)
        sides = set(sides.values()) if isinstance(sides, dict) else {sides}
        if settings is not None and sides - {None, settings.vision.image_size}:
            problems.append(
                f"{path.name}: {name} is {data[name]!r}; the network takes "
                f"{settings.vision.image_size} pixels"
            )
    return problems


def _close(values: Any, wanted: tuple[float, ...]) -> bool:
    try:
        return all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(values, wanted, strict=True))
    except (TypeError, ValueError):
        return False


_BLOCK = {
    r"layer_norm1": ("norm_attention", "scale"),
    r"layer_norm2": ("norm_mlp", "scale"),
    r"self_attn\.q_proj": ("attention.query", "kernel"),
    r"self_attn\.k_proj": ("attention.key", "kernel"),
    r"self_attn\.v_proj": ("attention.value", "kernel"),
    r"self_attn\.out_proj": ("attention.output", "kernel"),
    r"mlp\.fc1": ("mlp_in", "kernel"),
    r"mlp\.fc2": ("mlp_out", "kernel"),
}


def rules(config: CLIPConfig) -> list[Rule]:
    """The whole table; the counted positions of older files are dropped."""
    vision, text = r"vision_model\.", r"text_model\."
    table = [
        Rule(r"logit_scale", "log_scale"),
        Rule(r"visual_projection\.weight", "vision_projection.kernel", LINEAR),
        Rule(r"text_projection\.weight", "text_projection.kernel", LINEAR),
        Rule(rf"{vision}embeddings\.class_embedding", "vision.class_token"),
        Rule(
            rf"{vision}embeddings\.patch_embedding\.weight",
            "vision.patch_embedding.kernel",
            patch_kernel(config.vision.patch_size),
        ),
        Rule(rf"{vision}embeddings\.position_embedding\.weight", "vision.positions"),
        Rule(rf"{text}embeddings\.token_embedding\.weight", "text.token_embedding.embedding"),
        Rule(rf"{text}embeddings\.position_embedding\.weight", "text.positions"),
        ignored(r"(vision|text)_model\.embeddings\.position_ids"),
    ]
    for source, target in (
        (rf"{vision}pre_layrnorm", "vision.norm_before"),
        (rf"{vision}post_layernorm", "vision.norm_after"),
        (rf"{text}final_layer_norm", "text.norm_after"),
    ):
        table.append(Rule(rf"{source}\.weight", f"{target}.scale"))
        table.append(Rule(rf"{source}\.bias", f"{target}.bias"))
    for tower, prefix in (("vision", vision), ("text", text)):
        for theirs, (ours, kind) in _BLOCK.items():
            source = rf"{prefix}encoder\.layers\.(?P<layer>\d+)\.{theirs}"
            target = f"{tower}.blocks.{ours}"
            laid_out = {"transform": LINEAR} if kind == "kernel" else {}
            table.append(Rule(rf"{source}\.weight", f"{target}.{kind}", **laid_out))
            table.append(Rule(rf"{source}\.bias", f"{target}.bias"))
    return table
