"""The settings of a CogVideoX or Tora folder <-> `ModelConfig`: one table per part, both ways.

A setting that a file leaves out has diffusers' default. A setting that we do not implement, or do
not know, is refused: it would give other videos without a word.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from convert.engine.setting_table import Part
from tora2_jax import config as ours
from tora2_jax import diffusion
from tora2_jax.config import ModelConfig


def _vae_faults(values: dict[str, Any]) -> list[str]:
    groups, channels = values["norm_groups"], values["channels"]
    if not any(width % groups for width in channels):
        return []
    return [f"norm_num_groups {groups} must divide all of block_out_channels {channels}"]


def _schedule_faults(values: dict[str, Any]) -> list[str]:
    faults = [
        f"{name} is {values[name]}; it must be below 1"
        for name in ("beta_start", "beta_end")
        if values[name] >= 1
    ]
    if values["num_steps"] < 2:
        faults.append(f"num_train_timesteps is {values['num_steps']}; it must be 2 or more")
    return faults


TRANSFORMER = Part(
    "transformer",
    "config.json",
    ("CogVideoXTransformer3DModel",),
    {
        "num_attention_heads": ("num_heads", 30),
        "attention_head_dim": ("head_dim", 64),
        "in_channels": ("in_channels", 16),
        "out_channels": ("out_channels", 16),
        "time_embed_dim": ("time_embed_dim", 512),
        "ofs_embed_dim": ("ofs_embed_dim", None),
        "text_embed_dim": ("text_embed_dim", 4096),
        "num_layers": ("num_layers", 30),
        "sample_width": ("sample_width", 90),
        "sample_height": ("sample_height", 60),
        "sample_frames": ("sample_frames", 49),
        "patch_size": ("patch_size", 2),
        "patch_size_t": ("patch_size_t", None),
        "temporal_compression_ratio": ("temporal_compression", 4),
        "max_text_seq_length": ("max_text_length", 226),
        "norm_eps": ("norm_eps", 1e-5),
        "spatial_interpolation_scale": ("spatial_interpolation_scale", 1.875),
        "temporal_interpolation_scale": ("temporal_interpolation_scale", 1.0),
        "use_rotary_positional_embeddings": ("rotary", False),
        "use_learned_positional_embeddings": ("learned_positions", False),
    },
    {
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "timestep_activation_fn": "silu",
        "norm_elementwise_affine": True,
    },
    unread=("dropout", "patch_bias"),  # the bias of temporal patches is there whatever it says
)
VAE = Part(
    "vae",
    "config.json",
    ("AutoencoderKLCogVideoX",),
    {
        "block_out_channels": ("channels", [128, 256, 256, 512]),
        "latent_channels": ("latent_channels", 16),
        "layers_per_block": ("layers_per_block", 3),
        "norm_eps": ("norm_eps", 1e-6),
        "norm_num_groups": ("norm_groups", 32),
        "temporal_compression_ratio": ("temporal_compression", 4),
        "scaling_factor": ("scaling_factor", 1.15258426),
        "invert_scale_latents": ("invert_scale_latents", False),
        "sample_height": ("sample_height", 480),
        "sample_width": ("sample_width", 720),
    },
    {
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    unread=("down_block_types", "up_block_types", "force_upcast"),
    check=_vae_faults,
)
SCHEDULER = Part(
    "scheduler",
    "scheduler_config.json",
    ("CogVideoXDPMScheduler", "CogVideoXDDIMScheduler"),
    {
        "num_train_timesteps": ("num_steps", 1000),
        "beta_start": ("beta_start", 0.00085),
        "beta_end": ("beta_end", 0.012),
        "snr_shift_scale": ("snr_shift", 3.0),
        "timestep_spacing": ("timestep_spacing", "leading"),
        "steps_offset": ("steps_offset", 0),
    },
    {"beta_schedule": "scaled_linear", "trained_betas": None, "set_alpha_to_one": True},
    unread=("clip_sample", "clip_sample_range", "sample_max_value"),  # no step reads them
    required={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    choices={"timestep_spacing": diffusion.SPACINGS},
    check=_schedule_faults,
)
TEXT = Part(
    "text_encoder",
    "config.json",
    ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model"),
    {
        "vocab_size": ("vocab_size", 32128),
        "d_model": ("width", 512),
        "num_layers": ("num_layers", 6),
        "num_heads": ("num_heads", 8),
        "d_kv": ("head_dim", 64),
        "d_ff": ("mlp_dim", 2048),
        "relative_attention_num_buckets": ("relative_buckets", 32),
        "relative_attention_max_distance": ("relative_max_distance", 128),
        "layer_norm_epsilon": ("norm_eps", 1e-6),
    },
    {},
    required={"feed_forward_proj": "gated-gelu"},
    strict=False,
)
PARTS = (TRANSFORMER, VAE, SCHEDULER, TEXT)
TORA_CLASS = "ToraTransformer3DModel"  # takes the same settings
_SCHEDULERS = dict(zip(("dpm", "ddim"), SCHEDULER.classes, strict=True))


def read(
    parts: Mapping[str, Mapping[str, Any]], name: str, base: ModelConfig | None = None
) -> tuple[ModelConfig, list[str]]:
    """The model of a folder's JSON files, and everything about them that cannot be used.

    Args:
        parts: Content by folder: transformer, vae, scheduler, text_encoder.
        name: What to call a model that is none of the published ones.
        base: Has the settings of the parts that are left out; the transformer is never.
    """
    problems: list[str] = []
    values = {
        part.folder: part.read(parts[part.folder], problems)
        for part in PARTS
        if part.folder in parts
    }
    transformer = values["transformer"]
    transformer["positions"] = "rotary" if transformer.pop("rotary") else "sincos"
    given = {"transformer": ours.TransformerConfig(**transformer)}
    if "vae" in values:
        vae = values["vae"] | {"channels": tuple(values["vae"]["channels"])}
        given["vae"] = ours.VAEConfig(**vae)
    if "scheduler" in values:
        kind = parts["scheduler"].get("_class_name")
        sampler = next((key for key, value in _SCHEDULERS.items() if value == kind), "dpm")
        given["diffusion"] = ours.DiffusionConfig(**values["scheduler"], scheduler=sampler)
    if "text_encoder" in values:
        given["text"] = ours.T5Config(**values["text_encoder"])
    kept = {key: getattr(base, key) for key in ("vae", "diffusion", "text") if key not in given}
    model = ModelConfig(name=name, **given, **kept, motion=None, personalization=None)
    return _with_sizes(model), problems + contradictions(model)


def setting_problems(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What cannot be used in some of a folder's JSON files, each looked at alone; see `read`."""
    problems: list[str] = []
    for part in PARTS:
        if part.folder in parts:
            part.read(parts[part.folder], problems)
    return problems


def write(model: ModelConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a folder that diffusers loads, by folder; `model_index` is its root's.

    With a motion path it is Tora's, which the code released with Tora loads. What they cannot
    express (`inexpressible`) is left out.
    """
    transformer = model.transformer
    tora = model.motion is not None
    name = TORA_CLASS if tora else TRANSFORMER.classes[0]
    levels = len(model.vae.channels)
    written = {
        "transformer": _write(
            TRANSFORMER, transformer, {"rotary": transformer.positions == "rotary"}
        )
        | {"patch_bias": transformer.patch_size_t is None, "dropout": 0.0, "_class_name": name},
        "vae": _write(VAE, model.vae)
        | {
            "block_out_channels": list(model.vae.channels),
            "down_block_types": ["CogVideoXDownBlock3D"] * levels,
            "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        },
        "scheduler": _write(SCHEDULER, model.diffusion)
        | {"_class_name": _SCHEDULERS[model.diffusion.scheduler], "clip_sample": False},
        "text_encoder": _text(_write(TEXT, model.text)),
    }
    image = transformer.in_channels == 2 * model.vae.latent_channels
    kind = ("Tora" if tora else "CogVideoX") + ("ImageToVideo" if image else "")
    return written | {
        "model_index": {
            "_class_name": f"{kind}Pipeline",
            "scheduler": ["diffusers", written["scheduler"]["_class_name"]],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["tora.transformer_3d" if tora else "diffusers", name],
            "vae": ["diffusers", VAE.classes[0]],
        }
    }


def inexpressible(model: ModelConfig) -> list[str]:
    """The settings of a model that diffusers' files cannot hold: it would have its own there."""
    transformer, reasons = model.transformer, []
    if transformer.final_norm_eps != transformer.norm_eps:
        reasons.append(
            f"transformer.final_norm_eps is {transformer.final_norm_eps}; diffusers has only "
            f"norm_eps ({transformer.norm_eps}) for both norms"
        )
    if model.null_text != "empty":
        reasons.append(
            f"null_text is {model.null_text}; diffusers' pipelines take the empty text's encoding"
        )
    if model.motion is not None and model.motion.norm_groups != ours.MotionConfig().norm_groups:
        reasons.append(
            f"motion.norm_groups is {model.motion.norm_groups}; Tora has "
            f"{ours.MotionConfig().norm_groups}"
        )
    return reasons


def _text(settings: dict[str, Any]) -> dict[str, Any]:
    del settings["_class_name"]
    return settings | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _write(part: Part, settings: Any, derived: Mapping[str, Any] | None = None) -> dict[str, Any]:
    derived = derived or {}
    values = {
        theirs: derived[mine] if mine in derived else getattr(settings, mine)
        for theirs, (mine, _) in part.settings.items()
    }
    return {"_class_name": part.classes[0], **values, **part.fixed, **part.required}


def contradictions(model: ModelConfig) -> list[str]:
    """Sizes of the transformer that do not go with those of the VAE and the text encoder."""
    transformer, latent = model.transformer, model.vae.latent_channels
    checks = [
        (
            transformer.in_channels in (latent, 2 * latent) and transformer.out_channels == latent,
            f"transformer/config.json: in_channels {transformer.in_channels} and out_channels "
            f"{transformer.out_channels} do not go with the VAE's {latent} latent channels",
        ),
        (
            transformer.text_embed_dim == model.text.width,
            f"transformer/config.json: text_embed_dim {transformer.text_embed_dim} is not the "
            f"text encoder's {model.text.width}",
        ),
        (
            transformer.temporal_compression == model.vae.temporal_compression,
            "transformer/config.json: temporal_compression_ratio is not the VAE's",
        ),
    ]
    return [problem for holds, problem in checks if not holds]


def _with_sizes(model: ModelConfig) -> ModelConfig:
    """Name and video size: of the published model that this is, or of its position tables."""
    for preset in (make() for make in ours.PRESETS.values()):
        if preset.transformer == replace(model.transformer):
            return replace(
                model,
                **{
                    key: getattr(preset, key)
                    for key in ("name", "height", "width", "frames", "fps")
                },
            )
    transformer, compression = model.transformer, model.spatial_compression
    return replace(
        model,
        height=transformer.sample_height * compression,
        width=transformer.sample_width * compression,
        frames=transformer.sample_frames,
        fps=16 if transformer.patch_size_t else 8,
    )
