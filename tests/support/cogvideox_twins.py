"""Tiny random CogVideoX pipelines of diffusers, saved as people download them."""

import json
from functools import cache
from pathlib import Path

import sentencepiece
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from convert.__main__ import main
from tests.support.parity import randomize
from tora2_jax.config import PRESETS, ModelConfig

PUBLISHED = [name for name in PRESETS if name != "toy"]
PROMPTS = ("A man and a red kite in the snow.", "An old dog runs.")
FRAMES, HEIGHT, WIDTH = 17, 48, 32  # five latents: two chunks to decode
TEXT_LENGTH = 12


@cache
def pipeline(name: str) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
    """A twin of a published model: its switches, small sizes, every tensor random."""
    preset = PRESETS[name]()
    transformer, vae, text = _transformer(preset), _vae(preset), _text()
    schedulers = CogVideoXDDIMScheduler, CogVideoXDPMScheduler
    scheduler = schedulers[name != "cogvideox_2b"](
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        timestep_spacing="trailing",
        snr_shift_scale=preset.diffusion.snr_shift,
    )
    fixed = (
        transformer.patch_embed.pos_embedding if preset.transformer.positions == "sincos" else None
    )
    fixed = None if fixed is None else fixed.clone()
    for seed, module in enumerate((transformer, vae, text)):
        randomize(module, seed)
    if fixed is not None:
        transformer.patch_embed.pos_embedding.copy_(fixed)
    parts = {
        "tokenizer": None,
        "text_encoder": text,
        "vae": vae,
        "transformer": transformer,
        "scheduler": scheduler,
    }
    return (CogVideoXImageToVideoPipeline if preset.takes_image else CogVideoXPipeline)(**parts)


def _transformer(preset: ModelConfig) -> CogVideoXTransformer3DModel:
    config = preset.transformer
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8 if preset.takes_image else 4,
        out_channels=4,
        time_embed_dim=12,
        ofs_embed_dim=config.ofs_embed_dim and 12,
        text_embed_dim=24,
        num_layers=2,
        sample_frames=FRAMES,
        # 1.5's grid may be larger than the video; the others' is the video's.
        sample_height=10 if config.patch_size_t else HEIGHT // 8,
        sample_width=8 if config.patch_size_t else WIDTH // 8,
        patch_size_t=config.patch_size_t,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=config.positions == "rotary",
        use_learned_positional_embeddings=config.learned_positions,
        patch_bias=config.patch_size_t is None,
    )


def _vae(preset: ModelConfig) -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 12, 12),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=preset.vae.scaling_factor,
        invert_scale_latents=preset.vae.invert_scale_latents,
    )


def _text() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=200,  # 100 of T5's own ids follow the pieces
            d_model=24,
            d_kv=8,
            d_ff=40,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
        )
    )


def write_tokenizer(folder: Path, fast: bool = False) -> T5TokenizerFast:
    """A small SentencePiece tokenizer of T5's form, as `spiece.model` or `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(PROMPTS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    tokenizer = T5TokenizerFast.from_pretrained(folder)
    if fast:
        (folder / "spiece.model").unlink()
        tokenizer.save_pretrained(folder)
    return tokenizer


def save(name: str, folder: Path, fast_tokenizer: bool = False, dtype=None) -> Path:
    """Writes the twin as a download looks: shards with an index, configs, tokenizer, scheduler."""
    twin = pipeline(name)
    for part in ("transformer", "vae", "text_encoder"):
        module = getattr(twin, part)
        if dtype is not None:
            module = _copy(module, dtype)
        module.save_pretrained(folder / part, max_shard_size="20KB")
    twin.scheduler.save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", fast_tokenizer)
    index = {"_class_name": type(twin).__name__}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def convert(name: str, folder: Path, **options) -> tuple[Path, Path]:
    """The twin as a download and as `convert cogvideox` makes it of that."""
    source, converted = save(name, folder / "source", **options), folder / "converted"
    assert main(["cogvideox", "--src", str(source), "--dst", str(converted)]) == 0
    return source, converted


def _copy(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    import copy

    return copy.deepcopy(module).to(dtype)
