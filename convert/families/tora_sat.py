"""CogVideoX and Tora as their first releases store them: SwissArmyTransformer (SAT) checkpoints.

They hold the tensors of the diffusers versions under other names, with queries, keys and values in
one tensor, and the modulation of both norms of a block in one. Their networks differ in what no
tensor shows: `settings`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from convert.engine.rules import LINEAR, Part, Rule, Spec, Transform, ignored
from convert.families import cogvideox_transformer, tora_transformer
from tora2_jax.config import ModelConfig
from tora2_jax.models.layers import positions

FILE = "mp_rank_00_model_states.pt"
NETWORK = "model.diffusion_model."
# What such files may hold besides the network, and where we have it from.
_OTHERS = {
    "first_stage_model": "the base has the VAE",
    "conditioner": "the base has the text encoder",
    "denoiser": "the base has the noise schedule",
}
_FINAL_NORM_EPS = 1e-6
_LAYER = r"transformer\.layers\.(?P<layer>\d+)\."
_ADALN = r"mixins\.adaln_layer\."
_LINEAR = {
    rf"{_LAYER}attention\.dense": "blocks.attention.output",
    rf"{_LAYER}mlp\.dense_h_to_4h": "blocks.feed_forward.expand",
    rf"{_LAYER}mlp\.dense_4h_to_h": "blocks.feed_forward.project",
    r"time_embed\.0": "time_embedding.expand",
    r"time_embed\.2": "time_embedding.project",
    r"ofs_embed\.0": "ofs_embedding.expand",
    r"ofs_embed\.2": "ofs_embedding.project",
    r"mixins\.patch_embed\.text_proj": "text_projection",
    r"mixins\.final_layer\.adaLN_modulation\.1": "output_modulation",
    r"mixins\.final_layer\.linear": "output_projection",
}
_NORM = {
    rf"{_LAYER}input_layernorm": "blocks.attention_norm.norm",
    rf"{_LAYER}post_attention_layernorm": "blocks.feed_forward_norm.norm",
    rf"{_ADALN}query_layernorm_list\.(?P<layer>\d+)": "blocks.attention.query_norm",
    rf"{_ADALN}key_layernorm_list\.(?P<layer>\d+)": "blocks.attention.key_norm",
    r"transformer\.final_layernorm": "final_norm",
    r"mixins\.final_layer\.norm_final": "output_norm",
}
_PARTS = {
    rf"{_LAYER}attention\.query_key_value": {
        "blocks.attention.query": Part((0,), 3),
        "blocks.attention.key": Part((1,), 3),
        "blocks.attention.value": Part((2,), 3),
    },
    # Shift, scale and gate of the video's attention, of its feed-forward, then those of the text.
    rf"{_ADALN}adaLN_modulations\.(?P<layer>\d+)\.1": {
        "blocks.attention_norm.modulation": Part((0, 1, 2, 6, 7, 8), 12),
        "blocks.feed_forward_norm.modulation": Part((3, 4, 5, 9, 10, 11), 12),
    },
}
_POSITIONS = r"mixins\.pos_embed\.pos_embedding"
_LORA = re.compile(r"\.matrix_[AB]\.\d+$")
# The file has them, the network does not use them: fixed tables and SAT's own embeddings.
_UNUSED = (
    r"mixins\.pos_embed\.freqs_(sin|cos)",
    r"transformer\.(word|position)_embeddings\.weight",
)


def rules(config: ModelConfig) -> list[Rule]:
    """The table, for `models.tora2.Tora2` or, without a motion path, for its transformer alone."""
    table = []
    for source, target in _LINEAR.items():
        table += _pair(source, target, "kernel", LINEAR)
    for source, target in _NORM.items():
        table += _pair(source, target, "scale")
    for source, parts in _PARTS.items():
        for target, part in parts.items():
            table += [rule._replace(part=part) for rule in _pair(source, target, "kernel", LINEAR)]
    patch = LINEAR
    if not config.transformer.patch_size_t:
        patch = cogvideox_transformer.patch_convolution(config.transformer.patch_size)
    table += _pair(r"mixins\.patch_embed\.proj", "patch_embedding", "kernel", patch)
    if config.transformer.learned_positions:
        table.append(Rule(_POSITIONS, "positions", cogvideox_transformer.POSITIONS))
    if config.motion is not None:
        table = [rule._replace(target=f"transformer.{rule.target}") for rule in table]
        table += [
            rule._replace(source=rule.source.replace("fuser", rf"{_ADALN}fuser_list", 1))
            for rule in tora_transformer.rules(config.motion)
        ]
    table += [ignored(source) for source in _UNUSED]
    if config.transformer.positions == "sincos":
        table.append(ignored(_POSITIONS))  # the fixed table, which is computed here
    network = [rule._replace(source=re.escape(NETWORK) + rule.source) for rule in table]
    return [*network, *(ignored(rf"{prefix}\..*") for prefix in _OTHERS)]


def _pair(source: str, target: str, first: str, transform: Transform | None = None) -> list[Rule]:
    weight = Rule(rf"{source}\.weight", f"{target}.{first}")
    return [
        weight if transform is None else weight._replace(transform=transform),
        Rule(rf"{source}\.bias", f"{target}.bias"),
    ]


def is_sat(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a checkpoint of SAT, whatever stands before the names."""
    mark = r"(^|\.)(mixins\.|transformer\.layers\.\d+\.attention\.)"
    return any(re.search(mark, name) for name in names)


def network_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of the network's tensors; None if there is no network."""
    found = (re.fullmatch(r"(.*?)mixins\.patch_embed\.proj\.weight", name) for name in names)
    return next((match[1] for match in found if match), None)


def settings(base: ModelConfig, tensors: Mapping[str, Spec], tora: bool = True) -> ModelConfig:
    """The model of a file; what its tensors do not show is the base's, or fixed in the SAT code.

    The last norm has another epsilon than in diffusers, a dropped caption is zeros instead of the
    empty text, and it is sampled by DPM with trailing timesteps, whatever the base's scheduler
    says. Tora's I2V loads the learned positions and never adds them; CogVideoX's adds them.
    """
    patch = tensors.get(f"{NETWORK}mixins.patch_embed.proj.weight")
    learned = f"{NETWORK}mixins.pos_embed.pos_embedding" in tensors
    learned = learned and base.transformer.positions == "rotary"
    # The patches of 1.5 are a Linear, which does not show its channels.
    channels = patch.shape[1] if patch is not None and len(patch.shape) == 4 else None
    possible = base.vae.latent_channels, 2 * base.vae.latent_channels
    transformer = replace(
        base.transformer,
        in_channels=channels if channels in possible else base.transformer.in_channels,
        learned_positions=learned,
        add_learned_positions=not (tora and learned),
        final_norm_eps=_FINAL_NORM_EPS,
    )
    diffusion = replace(
        base.diffusion, scheduler="dpm", timestep_spacing="trailing", steps_offset=0
    )
    return replace(
        base,
        transformer=transformer,
        diffusion=diffusion,
        null_text="zeros",
        personalization=None,
    )


def base_problems(base: ModelConfig, tensors: Mapping[str, Spec], tora: bool = True) -> list[str]:
    """What of a base does not go with a file; of Tora's also what shapes do not show."""
    return (_tora_base_problems(base) if tora else []) + _table_problems(base, tensors)


def _tora_base_problems(base: ModelConfig) -> list[str]:
    """Whether a base is of the kind on which Tora was trained."""
    wanted = {
        "transformer.positions": (base.transformer.positions, "rotary"),
        "transformer.patch_size_t": (base.transformer.patch_size_t, None),
        "transformer.norm_eps": (base.transformer.norm_eps, 1e-5),
        "vae.scaling_factor": (base.vae.scaling_factor, 0.7),
        "vae.invert_scale_latents": (base.vae.invert_scale_latents, False),
        "diffusion.snr_shift": (base.diffusion.snr_shift, 1.0),
    }
    return [
        f"--base: {name} is {value!r}, but Tora is made for {right!r}; take CogVideoX-5B"
        for name, (value, right) in wanted.items()
        if value != right
    ]


def _table_problems(base: ModelConfig, tensors: Mapping[str, Spec]) -> list[str]:
    """Whether a file's rotary tables are for videos of another size than the base's."""
    if base.transformer.patch_size_t:
        return []
    t, h, w = positions.sample_grid(base.transformer)
    table = tensors.get(f"{NETWORK}mixins.pos_embed.freqs_cos")
    if table is None or tuple(table.shape) == (t * h * w, base.transformer.head_dim):
        return []
    return [
        f"--base: is made for {t} x {h} x {w} tokens and heads of {base.transformer.head_dim}, "
        f"but the file's rotary tables are {tuple(table.shape)}"
    ]


def file_problems(tensors: Mapping[str, Spec], tora: bool = True) -> list[str]:
    """Whether it is another kind of checkpoint altogether."""
    if loras := [name for name in tensors if _LORA.search(name)]:
        return [
            f"is a fine-tune of SAT by a LoRA ({loras[0]}); write the LoRA with CogVideo's "
            "tools/export_sat_lora_weight.py, and merge that with `convert lora`"
        ]
    if network_prefix(tensors) is None:
        shown = ", ".join(sorted(tensors)[:4]) or "nothing"
        return [f"no tensor is called {NETWORK}mixins.patch_embed..., as in SAT; it has {shown}"]
    found = tora_transformer.motion_config(tensors, 1) is not None
    if found == tora:
        return []
    if tora:
        return ["has none of Tora's tensors (traj_extractor): use `convert cogvideox`"]
    return ["has Tora's tensors (traj_extractor): use `convert tora`"]


def notes(tensors: Mapping[str, Spec], model: ModelConfig) -> list[str]:
    """What of the file is left out, and what the converted model does unlike the diffusers version.

    Args:
        tensors: Of the file.
        model: From `settings`.
    """
    found = []
    for prefix, reason in _OTHERS.items():
        count = sum(name.startswith(f"{prefix}.") for name in tensors)
        if count:
            found.append(f"left out: {prefix} ({count} tensors); {reason}")
    if model.transformer.learned_positions and not model.transformer.add_learned_positions:
        found.append("kept but not added, as in Tora's SAT code: the learned positions")
    return found
