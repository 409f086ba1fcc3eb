"""Random Tora weights in both released forms, on the CogVideoX twins; shapes alone at full size."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import save_file

from convert.checkpoints import diffusers_config
from tests.support import cogvideox_twins as twins
from tests.support.weights_rule import tensor
from tora2_jax.config import ModelConfig

MAP_WIDTH, BLOCKS_PER_LAYER = 8, 2


def additions(
    config: Mapping, map_width: int = MAP_WIDTH, blocks_per_layer: int = BLOCKS_PER_LAYER
) -> dict[str, tuple[int, ...]]:
    """Shapes of what Tora adds to a transformer of this config, by its diffusers names."""
    u, width = map_width, config["num_attention_heads"] * config["attention_head_dim"]
    channels = config["out_channels"] * config["patch_size"] ** 2 * (config["patch_size_t"] or 1)
    shapes: dict[str, tuple[int, ...]] = {"traj_extractor.conv_in.weight": (u, channels, 3, 3)}
    shapes["traj_extractor.conv_in.bias"] = (u,)
    for block in range(config["num_layers"] * blocks_per_layer):
        for number in (1, 2):
            start = f"traj_extractor.body.{block}."
            shapes[f"{start}block{number}.weight"] = (u, u, 3, 3)
            shapes[f"{start}block{number}.bias"] = (u,)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{start}bn{number}.{name}"] = (u,)
            shapes[f"{start}bn{number}.num_batches_tracked"] = ()
    for layer in range(config["num_layers"]):
        for name in ("gamma", "beta"):
            start = f"fuser.{layer}.flow_{name}_"
            shapes[f"{start}spatial.weight"] = (width // 4, u, 3, 3)
            shapes[f"{start}spatial.bias"] = (width // 4,)
            shapes[f"{start}temporal.weight"] = (width, width // 4, 3)
            shapes[f"{start}temporal.bias"] = (width,)
        for name in ("weight", "bias"):
            shapes[f"fuser.{layer}.flow_cond_norm.{name}"] = (width,)
    return shapes


def tensors(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All tensors of a tiny Tora transformer of the diffusers version."""
    transformer = twins.pipeline(name).transformer
    both = {key: value.detach().clone() for key, value in transformer.state_dict().items()}
    for key, shape in additions(transformer.config).items():
        both[key] = torch.tensor(tensor(key, shape, 3))
    return {
        key: value.to(dtype).contiguous() if value.is_floating_point() else value + 15_000
        for key, value in both.items()
    }


def full_size(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Names and shapes of the release, without numbers."""
    settings = diffusers_config.write(model)["transformer"]
    with torch.device("meta"):
        found = dict(CogVideoXTransformer3DModel.from_config(settings).state_dict())
        for key, shape in additions(settings, 128).items():
            found[key] = torch.empty(shape)
    return found


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A whole folder of the diffusers version."""
    twins.save(name, folder, dtype=dtype)
    transformer = folder / "transformer"
    config = json.loads((transformer / "config.json").read_text())
    shutil.rmtree(transformer)
    transformer.mkdir()
    config["_class_name"] = "ToraTransformer3DModel"
    (transformer / "config.json").write_text(json.dumps(config))
    save_file(tensors(name, dtype), transformer / "diffusion_pytorch_model.safetensors")
    return folder


_RENAMED = (
    ("transformer_blocks.", "transformer.layers."),
    ("norm1.norm.", "input_layernorm."),
    ("norm2.norm.", "post_attention_layernorm."),
    ("attn1.to_out.0.", "attention.dense."),
    ("ff.net.0.proj.", "mlp.dense_h_to_4h."),
    ("ff.net.2.", "mlp.dense_4h_to_h."),
    ("norm_final.", "transformer.final_layernorm."),
    ("norm_out.norm.", "mixins.final_layer.norm_final."),
    ("norm_out.linear.", "mixins.final_layer.adaLN_modulation.1."),
    ("proj_out.", "mixins.final_layer.linear."),
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("ofs_embedding.linear_1.", "ofs_embed.0."),
    ("ofs_embedding.linear_2.", "ofs_embed.2."),
    ("patch_embed.pos_embedding", "mixins.pos_embed.pos_embedding"),
    ("patch_embed.", "mixins.patch_embed."),
    ("fuser.", "mixins.adaln_layer.fuser_list."),
)
NETWORK = "model.diffusion_model."


def sat(left: dict[str, torch.Tensor], rotary_tables: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The diffusers version's tensors as the SAT version holds them, with what else is in its file.

    Args:
        left: From `tensors` or `full_size`; is emptied.
        rotary_tables: Tokens and channels of a head.
    """
    found = {}
    layers = sum(key.endswith("attn1.to_q.weight") for key in left)
    for layer in range(layers):
        block, adaln = f"transformer_blocks.{layer}.", "mixins.adaln_layer."
        for kind in ("weight", "bias"):
            fused = [left.pop(f"{block}attn1.to_{part}.{kind}") for part in "qkv"]
            found[f"transformer.layers.{layer}.attention.query_key_value.{kind}"] = torch.cat(fused)
            (video, text), (video_mlp, text_mlp) = (
                left.pop(f"{block}norm{number}.linear.{kind}").chunk(2) for number in (1, 2)
            )
            modulation = torch.cat([video, video_mlp, text, text_mlp])
            found[f"{adaln}adaLN_modulations.{layer}.1.{kind}"] = modulation
            for theirs, part in (("query", "q"), ("key", "k")):
                norm = left.pop(f"{block}attn1.norm_{part}.{kind}")
                found[f"{adaln}{theirs}_layernorm_list.{layer}.{kind}"] = norm
    for key in list(left):
        renamed = key
        for theirs, ours in _RENAMED:
            if not renamed.startswith("mixins."):
                renamed = renamed.replace(theirs, ours, 1)
        found[renamed] = left.pop(key)
    for table in ("sin", "cos"):
        found[f"mixins.pos_embed.freqs_{table}"] = torch.empty(rotary_tables).normal_()
    found["transformer.position_embeddings.weight"] = torch.randn(4, 8)
    others = ("first_stage_model.encoder.conv_in.conv", "conditioner.embedders.0.shared")
    network = {NETWORK + key: value for key, value in found.items()}
    return network | {f"{name}.weight": torch.randn(2, 2) for name in others}


def tiny_sat(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """`tensors` in the SAT version."""
    config = twins.pipeline(name).transformer.config
    tokens = 5 * config.sample_height * config.sample_width // 4
    return sat(tensors(name, dtype), (tokens, config.attention_head_dim))


def save_sat(found: Mapping[str, object], path: Path) -> Path:
    """`mp_rank_00_model_states.pt`, as the training code leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"module": dict(found), "iteration": 15000, "ds_config": {"stage": 2}}, path)
    return path
