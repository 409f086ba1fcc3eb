"""`python -m convert t5`: a T5 v1.1 of Hugging Face, whole or its encoder -> our text encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoints import encoders
from convert.checkpoints.diffusers_config import TEXT
from convert.engine.rules import LINEAR, Rule, ignored
from convert.engine.tokenizers import t5_problems
from tora2_jax.config import T5Config
from tora2_jax.models.encoders.t5 import T5Encoder
from tora2_jax.models.layers.basic import shape_rngs

_BLOCK = r"encoder\.block\.(?P<layer>\d+)\.layer\."


def convert_encoder(source: str | Path, destination: str | Path) -> list[str]:
    """Converts a folder (or a file beside its `config.json`) for `config.weights.text`.

    The tokenizer is the folder's, or that of its sub-folder `tokenizer`, or as in a diffusers
    download of the `tokenizer` beside a `text_encoder`.

    Args:
        source: As people download it; only local files are read.
        destination: Must not exist; gets `text/` and `tokenizer/`.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            model.
        FolderError: the destination cannot be written.
    """
    source, problems = Path(source), []
    data = encoders.read_config(source, problems)
    settings = read_settings(data, problems)
    tensors = encoders.open_tensors(source, problems)
    tokenizer = _tokenizer(source if source.is_dir() else source.parent)
    if not data or data.get("model_type") == "t5":
        problems += t5_problems(tokenizer, settings and settings.vocab_size)
    encoder = None if settings is None else _encoder(settings)
    notes = encoders.write(source, destination, encoder, tensors, problems, tokenizer)
    note = encoders.settings_note(encoder, {})
    return [*notes, note, f"config.tokenizer is {Path(destination) / 'tokenizer'}"]


def read_settings(data: Mapping[str, Any], problems: list[str]) -> T5Config | None:
    """The settings in a `config.json`; None, and `problems` says why, if they cannot be used."""
    found = encoders.type_problems(data, ("t5",))
    values = {} if found or not data else TEXT.read(data, found, encoders.CONFIG)
    problems += found
    return T5Config(**values) if values and not found else None


def _tokenizer(folder: Path) -> Path:
    """Where the tokenizer lies; the folder itself if it is nowhere."""
    places = [folder, folder / "tokenizer"]
    if folder.absolute().name.startswith("text_encoder"):
        beside = folder.absolute().name.replace("text_encoder", "tokenizer")
        places.append(folder.absolute().parent / beside)
    names = ("tokenizer.json", "spiece.model")
    return next((p for p in places if any((p / name).is_file() for name in names)), folder)


def _encoder(settings: T5Config) -> encoders.Encoder:
    return encoders.Encoder(
        "text", settings, lambda: T5Encoder(settings, rngs=shape_rngs()), rules(settings)
    )


def rules(config: T5Config) -> list[Rule]:
    """The table; also takes a whole T5 v1.1, of which the decoder is dropped."""
    del config  # the names are the same for every size
    attention = [
        Rule(
            rf"{_BLOCK}0\.SelfAttention\.{theirs}\.weight",
            f"blocks.attention.{ours}.kernel",
            LINEAR,
        )
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))
    ]
    mlp = [
        Rule(rf"{_BLOCK}1\.DenseReluDense\.{theirs}\.weight", f"blocks.mlp.{ours}.kernel", LINEAR)
        for theirs, ours in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))
    ]
    return [
        Rule(r"shared\.weight", "token_embedding.embedding"),
        Rule(
            # Only the first block stores the bias; all blocks use it.
            r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
            "relative_bias.embedding",
        ),
        Rule(rf"{_BLOCK}0\.layer_norm\.weight", "blocks.attention_norm.scale"),
        Rule(rf"{_BLOCK}1\.layer_norm\.weight", "blocks.mlp_norm.scale"),
        *attention,
        *mlp,
        Rule(r"encoder\.final_layer_norm\.weight", "final_norm.scale"),
        ignored(r"encoder\.embed_tokens\.weight"),  # the same array as shared.weight
        ignored(r"(decoder\..*|lm_head\.weight)"),
    ]
