"""Whether the tokenizer of a folder can be used with the weights beside it."""

from pathlib import Path

from tora2_jax.text import load_tokenizer


def t5_problems(folder: Path, vocab_size: int | None = None) -> list[str]:
    """What is wrong with T5's tokenizer in a folder.

    Args:
        folder: Holds its files.
        vocab_size: Of the text encoder, if that is known.
    """
    try:
        largest = max(load_tokenizer(folder).get_vocab().values())
    except (OSError, ValueError) as error:
        return [str(error)]
    return vocabulary_problems(folder, largest, vocab_size)


def vocabulary_problems(folder: Path, largest: int, vocab_size: int | None) -> list[str]:
    """Whether a tokenizer knows more tokens than its text encoder."""
    if vocab_size is None or largest < vocab_size:
        return []
    return [f"{folder}: has ids up to {largest}, but the text encoder knows {vocab_size} tokens"]
