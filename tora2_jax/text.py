"""Captions to token ids, and where in a caption a word stands."""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from tora2_jax.system import hub
from tora2_jax.system.unusable_file import why_unusable

PAD_ID, END_ID = 0, 1
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE = "▁"  # begins the tokens that begin a word


class Piece(NamedTuple):
    """A token and what of the text it stands for."""

    token: int
    spelled: str  # as the vocabulary has it, with the mark of a word's start
    start: int
    end: int  # characters of the text

    @property
    def text(self) -> str:
        """Its letters, without the mark."""
        return self.spelled.removeprefix(SPACE)


class Tokenizer:
    """A T5 tokenizer that knows which characters each of its tokens stands for.

    What transformers' class of the same file gives, without importing transformers, which would
    cost each start a second.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.no_truncation()  # some files keep the last user's settings
        backend.no_padding()
        backend.add_special_tokens([PAD, END, UNKNOWN])
        self._backend = backend
        self.unknown_id = backend.token_to_id(UNKNOWN)

    def pieces(self, text: str) -> list[Piece]:
        """All tokens of a text in their order, without an end."""
        encoded = self._backend.encode(text, add_special_tokens=False)
        # Not `encoded.tokens`, which spells an unknown token as the text does.
        return [
            Piece(token, self._backend.id_to_token(token) or UNKNOWN, *span)
            for token, span in zip(encoded.ids, encoded.offsets, strict=True)
        ]

    def encode(self, text: str) -> list[int]:
        """The ids of these tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def vocabulary(self) -> dict[str, int]:
        """All tokens, as they are spelled, and their ids."""
        return self._backend.get_vocab()


def load_tokenizer(directory: str | Path) -> Tokenizer:
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
            backend = tokenizers.Tokenizer.from_file(str(fast))
        else:
            from transformers import T5Tokenizer  # it translates SentencePiece's model

            backend = T5Tokenizer.from_pretrained(
                str(directory), local_files_only=True
            ).backend_tokenizer
    except Exception as error:  # the parsers raise bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {directory} cannot be read: {error}") from error
    found = (backend.token_to_id(PAD), backend.token_to_id(END))
    if found != (PAD_ID, END_ID):
        raise ValueError(
            f"the tokenizer in {directory} is not T5's: the ids of <pad> and </s> are {found}, "
            f"not ({PAD_ID}, {END_ID})."
        )
    return Tokenizer(backend)


def tokenize(tokenizer: Tokenizer, captions: list[str], max_length: int) -> np.ndarray:
    """Captions as T5 sees them: cut, ended by `</s>`, padded with 0.

    Returns:
        int32 `[b, l]` with l = max_length.
    """
    ids = np.full((len(captions), max_length), PAD_ID, np.int32)
    for row, caption in zip(ids, captions, strict=True):
        tokens = tokenizer.encode(caption)[: max_length - 1]
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
    tokenizer: Tokenizer,
    caption: str,
    span: tuple[int, int],
    max_length: int,
    limit: int,
) -> list[int] | None:
    """Positions of the tokens that spell a part of the caption.

    Args:
        tokenizer: from `load_tokenizer`.
        caption: the whole caption.
        span: character range, as from `find_word`.
        max_length: l; the caption keeps max_length - 1 tokens and the end.
        limit: at most this many positions, the first ones.

    Returns:
        Rising positions in the row that `tokenize` makes, or None if the part does not lie wholly
        inside the tokens that are kept.
    """
    positions = [
        position
        for position, piece in enumerate(tokenizer.pieces(caption))
        # A piece may carry the space before its word, and a lone space mark stands for no letter.
        if piece.start < span[1] and piece.end > span[0] and piece.text
    ]
    if not positions or positions[-1] >= max_length - 1:
        return None
    return positions[:limit]


def kept_text(tokenizer: Tokenizer, text: str, max_length: int) -> tuple[int, int]:
    """How many characters of a text `tokenize` keeps, and how many tokens the whole text has."""
    pieces = tokenizer.pieces(text)
    kept = len(text) if len(pieces) < max_length else pieces[max_length - 2].end
    return kept, len(pieces)


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The parts of a text that are one and the same unknown token to the model, each once."""
    found = [
        text[piece.start : piece.end].strip()
        for piece in tokenizer.pieces(text)
        if piece.token == tokenizer.unknown_id
    ]
    return list(dict.fromkeys(found))


def knows_any_word(tokenizer: Tokenizer, text: str) -> bool:
    """Whether any letter or digit of a text reaches the model."""
    return any(
        piece.token != tokenizer.unknown_id and any(map(str.isalnum, piece.text))
        for piece in tokenizer.pieces(text)
    )


def letters_only(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text that are spelled letter by letter, each once; numbers do not count."""
    other = np.zeros(len(text), bool)  # characters in longer pieces; an unknown one is "<unk>"
    for piece in tokenizer.pieces(text):
        if len(piece.text) > 1:
            other[piece.start : piece.end] = True
    words = re.finditer(r"(?<!\w)[A-Za-z]{2,}(?!\w)", text)
    spelled = [word.group().lower() for word in words if not other[slice(*word.span())].any()]
    return list(dict.fromkeys(spelled))


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """The words that are one token, in alphabetic order."""
    starts = (token.removeprefix(SPACE) for token in tokenizer.vocabulary() if token[:1] == SPACE)
    return sorted(word for word in starts if len(word) > 1)
