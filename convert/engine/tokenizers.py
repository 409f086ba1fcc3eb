"""Whether the tokenizer of a folder can be used with the weights beside it."""

from pathlib import Path

from tora2_jax.config.encoders import CLIPTextConfig
from tora2_jax.evaluation.clip import load_clip_tokenizer
from tora2_jax.models.encoders.clip import LEGACY_END
from tora2_jax.text import load_tokenizer


def t5_problems(folder: Path, vocab_size: int | None = None) -> list[str]:
    """What is wrong with T5's tokenizer in a folder.

    Args:
        folder: Holds its files.
        vocab_size: Of the text encoder, if that is known.
    """
    try:
        largest = max(load_tokenizer(folder).vocabulary().values())
    except (OSError, ValueError) as error:
        return [str(error)]
    return _vocabulary_problems(folder, largest, vocab_size)


def clip_problems(folder: Path, settings: CLIPTextConfig | None = None) -> list[str]:
    """What is wrong with CLIP's tokenizer in a folder.

    Args:
        folder: Holds its files.
        settings: Of the text tower, if they are known.
    """
    try:
        tokenizer = load_clip_tokenizer(folder)
    except (OSError, ValueError) as error:
        return [str(error)]
    largest = max(tokenizer.get_vocab().values())
    if settings is None:
        return []
    problems = _vocabulary_problems(folder, largest, settings.vocab_size)
    end = tokenizer.eos_token_id
    if settings.eos_token_id == LEGACY_END and end != largest:
        problems.append(
            f"{folder}: the end token has the id {end}, but with eos_token_id {LEGACY_END} in "
            f"config.json it must be the largest id, {largest}"
        )
    elif settings.eos_token_id not in (LEGACY_END, end):
        problems.append(
            f"{folder}: the end token has the id {end}, but eos_token_id in config.json is "
            f"{settings.eos_token_id}"
        )
    return problems


def _vocabulary_problems(folder: Path, largest: int, vocab_size: int | None) -> list[str]:
    """Whether a tokenizer knows more tokens than its text encoder."""
    if vocab_size is None or largest < vocab_size:
        return []
    return [f"{folder}: has ids up to {largest}, but the text encoder knows {vocab_size} tokens"]
