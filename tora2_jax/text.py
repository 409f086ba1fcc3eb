"""Captions to token ids, and where in a caption a word stands."""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Tokenizer

from tora2_jax.system import hub
from tora2_jax.system.unusable_file import why_unusable

PAD_ID, END_ID = 0, 1
SPACE = "▁"  # begins the tokens that begin a word


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a T5 encoder, from a local folder or the hub.

    Args:
        directory: holds `tokenizer.json` or SentencePiece's `spiece.model`; of a hub model, also
            its folder `tokenizer`.

    Raises:
        FileNotFoundError: the folder holds neither.
        ValueError: a file is damaged, or pad and end are not T5's ids 0 and 1.
    """
    named, directory = directory, hub.local(directory)
    if directory != Path(named) and (directory / "tokenizer").is_dir():
        directory = directory / "tokenizer"
    fast, pieces = directory / "tokenizer.json", directory / "spiece.model"
    if not fast.is_file() and not pieces.is_file():
        raise FileNotFoundError(
            f"{directory} holds no tokenizer: it needs tokenizer.json or spiece.model, as in the "
            "tokenizer folder of a CogVideoX download."
        )
    for file in (fast, pieces):
        if file.is_file() and (reason := why_unusable(file)):
            raise ValueError(f"{file} {reason}.")
    try:
        if fast.is_file():
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_file=str(fast), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
            )
        else:
            tokenizer = T5Tokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the parsers raise bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {directory} cannot be read: {error}") from error
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    if found != (PAD_ID, END_ID):
        raise ValueError(
            f"the tokenizer in {directory} is not T5's: the ids of <pad> and </s> are {found}, "
            f"not ({PAD_ID}, {END_ID})."
        )
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int
) -> np.ndarray:
    """Captions as T5 sees them: cut, ended by `</s>`, padded with 0.

    Returns:
        int32 `[b, l]` with l = max_length.
    """
    ids = np.full((len(captions), max_length), PAD_ID, np.int32)
    for row, caption in zip(ids, captions, strict=True):
        tokens = tokenizer.encode(caption, add_special_tokens=False)[: max_length - 1]
        row[: len(tokens) + 1] = [*tokens, END_ID]
    return ids


def find_word(caption: str, word: str) -> tuple[int, int]:
    """The character range of a word or phrase in a caption.

    Whole words only, without regard to case or to the width of white space.

    Args:
        caption: the text to search.
        word: a word or phrase; `"man#2"` is the second occurrence of "man", `"man"` the first.

    Returns:
        Start and end, such that `caption[start:end]` is the word.

    Raises:
        ValueError: the caption has no such occurrence; the message says what it has.
    """
    text, mark, number = word.strip().rpartition("#")
    if not (mark and text and number.isdecimal()):
        text, number = word.strip(), "1"
    if not text:
        raise ValueError("the word is empty; name a word of the prompt")
    if int(number) < 1:
        raise ValueError(f'"{word}" names occurrence {number}; the first is "{text}#1"')
    pattern = r"\s+".join(re.escape(part) for part in text.split())
    spans = [m.span() for m in re.finditer(rf"(?<!\w){pattern}(?!\w)", caption, re.IGNORECASE)]
    if not spans:
        raise ValueError(f'"{text}" is not in the prompt{_suggestion(caption, text)}')
    if int(number) > len(spans):
        times = "once" if len(spans) == 1 else f"{len(spans)} times"
        raise ValueError(f'"{text}" stands in the prompt {times}; there is no "{word}"')
    return spans[int(number) - 1]


def _suggestion(caption: str, text: str) -> str:
    """The word of the caption that may have been meant."""
    words = {word.lower(): word for word in re.findall(r"\w+", caption)}
    holding = [word for word in words if text.lower() in word]
    close = difflib.get_close_matches(text.lower(), words, n=1, cutoff=0.6) or holding
    return f' as a whole word; did you mean "{words[close[0]]}"?' if close else ""


def word_tokens(
    tokenizer: PreTrainedTokenizerBase,
    caption: str,
    span: tuple[int, int],
    max_length: int,
    limit: int,
) -> list[int] | None:
    """Positions of the tokens that spell a part of the caption.

    Args:
        tokenizer: a fast tokenizer, which knows the characters of each token.
        caption: the whole caption.
        span: character range, as from `find_word`.
        max_length: l; the caption keeps max_length - 1 tokens and the end.
        limit: at most this many positions, the first ones.

    Returns:
        Rising positions in the row that `tokenize` makes, or None if the part does not lie wholly
        inside the tokens that are kept.
    """
    encoded = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)
    pieces = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    positions = [
        position
        for position, ((start, end), piece) in enumerate(
            zip(encoded["offset_mapping"], pieces, strict=True)
        )
        # A piece may carry the space before its word, and a lone space mark stands for no letter.
        if start < span[1] and end > span[0] and piece != SPACE
    ]
    if not positions or positions[-1] >= max_length - 1:
        return None
    return positions[:limit]


class Piece(NamedTuple):
    """A token and what of the text it stands for."""

    token: int
    text: str  # as the tokenizer holds it, without the mark of a word's start
    start: int
    end: int  # characters of the text


def pieces_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Piece]:
    """All tokens of a text in their order; a fast tokenizer is needed."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    spelled = tokenizer.convert_ids_to_tokens(ids)
    return [
        Piece(token, piece.removeprefix(SPACE), *span)
        for token, piece, span in zip(ids, spelled, encoded["offset_mapping"], strict=True)
    ]


def kept_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> tuple[int, int]:
    """How many characters of a text `tokenize` keeps, and how many tokens the whole text has."""
    pieces = pieces_of(tokenizer, text)
    kept = len(text) if len(pieces) < max_length else pieces[max_length - 2].end
    return kept, len(pieces)


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The parts of a text that are one and the same unknown token to the model, each once."""
    found = [
        text[piece.start : piece.end].strip()
        for piece in pieces_of(tokenizer, text)
        if piece.token == tokenizer.unk_token_id
    ]
    return list(dict.fromkeys(found))


def knows_any_word(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether any letter or digit of a text reaches the model."""
    return any(
        piece.token != tokenizer.unk_token_id and any(map(str.isalnum, piece.text))
        for piece in pieces_of(tokenizer, text)
    )


def letters_only(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The words of a text that are spelled letter by letter, each once; numbers do not count."""
    other = np.zeros(len(text), bool)  # characters in longer pieces; an unknown one is "<unk>"
    for piece in pieces_of(tokenizer, text):
        if len(piece.text) > 1:
            other[piece.start : piece.end] = True
    words = re.finditer(r"(?<!\w)[A-Za-z]{2,}(?!\w)", text)
    spelled = [word.group().lower() for word in words if not other[slice(*word.span())].any()]
    return list(dict.fromkeys(spelled))


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that are one token, in alphabetic order."""
    starts = (token.removeprefix(SPACE) for token in tokenizer.get_vocab() if token[:1] == SPACE)
    return sorted(word for word in starts if len(word) > 1)
