"""Token ids as T5 sees them, and where in a caption a word stands."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from scripts.make_tokenizer import build, save
from tora2_jax.text import find_word, load_tokenizer, tokenize, word_tokens

CORPUS = [
    "A man and a kite in the snow.",
    "A tall woman with a red kite beside an old dog on the grass.",
]
CAPTION = "A man and another man with a red kite."


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save(build(CORPUS), directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def sentencepiece_directory(tmp_path_factory):
    """A folder like the one of a CogVideoX download, small."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("spiece")
    (directory / "corpus.txt").write_text("\n".join(CORPUS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return directory


def test_tokenize_ends_cuts_and_pads(toy):
    ids = tokenize(toy, ["A man and a kite.", "", "a " * 50], 8)
    assert ids.shape == (3, 8) and ids.dtype == np.int32
    assert ids[0, 6] == 1 and ids[0, 7] == 0 and (ids[0, :6] > 2).all()
    assert ids[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert ids[2, 7] == 1 and len(set(ids[2, :7])) == 1


TEXTS = ["A man and a kite in the snow.", "", "A red dog " * 20, "ein Hund </s> <pad> läuft"]


@pytest.fixture(scope="module")
def theirs(sentencepiece_directory):
    """Transformers' own class of a SentencePiece model."""
    return transformers.T5Tokenizer.from_pretrained(sentencepiece_directory)


@pytest.mark.parametrize("limit", [None, 5], ids=["as_saved", "with_settings_of_a_last_use"])
def test_ids_and_pieces_are_those_of_transformers(tmp_path, sentencepiece_directory, theirs, limit):
    if limit:  # a tokenizer.json keeps them, and transformers puts them aside
        theirs.backend_tokenizer.enable_truncation(limit)
        theirs.backend_tokenizer.enable_padding(length=30)
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for folder in (tmp_path, sentencepiece_directory):
        ours = load_tokenizer(folder)
        padded = theirs(TEXTS, padding="max_length", truncation=True, max_length=12)
        assert np.array_equal(tokenize(ours, TEXTS, 12), padded["input_ids"])
        for text in TEXTS:
            known = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
            pieces = ours.pieces(text)
            assert [piece.token for piece in pieces] == known["input_ids"] == ours.encode(text)
            assert [(piece.start, piece.end) for piece in pieces] == known["offset_mapping"]
            spelled = theirs.convert_ids_to_tokens(known["input_ids"])
            assert [piece.spelled for piece in pieces] == spelled
        assert ours.unknown_id == theirs.unk_token_id
        assert ours.vocabulary() == theirs.get_vocab()


def test_a_tokenizer_of_a_json_file_needs_no_transformers():
    folder = Path(__file__).parents[1] / "checkpoints" / "bold" / "tokenizer"
    program = (
        "import sys; from tora2_jax.text import load_tokenizer; "
        f"load_tokenizer({str(folder)!r}); assert 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_ids_are_those_of_sentencepiece(sentencepiece_directory):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_directory / "spiece.model")
    )
    tokenizer = load_tokenizer(sentencepiece_directory)
    for text in ["A man and a kite.", "The  old woman's dog, on grass", ""]:
        expected = [*processor.encode(text), 1]
        assert tokenize(tokenizer, [text], 60)[0, : len(expected)].tolist() == expected


def test_words_of_the_corpus_are_single_tokens(toy):
    assert len(toy.vocabulary()) <= 256
    for word in ["man", "kite", "snow", "woman", "red", "beside", "dog", "grass"]:
        assert len(toy.encode(word)) == 1


def test_unknown_words_are_spelt(toy):
    assert [piece.spelled for piece in toy.pieces("zebra")] == ["▁", *"zebra"]


def test_tokenizer_builder_refuses_too_many_words():
    with pytest.raises(ValueError, match="300 words"):
        build([f"w{index}" for index in range(300)])


def test_shipped_tokenizer_spells_no_word_of_its_world():
    world = pytest.importorskip("tora2_jax.world.clips")
    directory = Path(__file__).parents[1] / "checkpoints" / "toy" / "tokenizer"
    tokenizer = load_tokenizer(directory)
    for caption in list(world.caption_corpus())[::40]:
        pieces = [piece.spelled for piece in tokenizer.pieces(caption)]
        assert "▁" not in pieces and "<unk>" not in pieces, caption


def test_missing_or_damaged_tokenizer(tmp_path, sentencepiece_directory):
    with pytest.raises(FileNotFoundError, match=r"spiece\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    shutil.copy(sentencepiece_directory / "corpus.txt", tmp_path / "spiece.model")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("word", "found"),
    [("man", (2, 5)), ("MAN#1", (2, 5)), ("man#2", (18, 21)), (" red  kite ", (29, 37))],
)
def test_find_word(word, found):
    assert find_word(CAPTION, word) == found


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dog", '"dog" is not in the prompt'),
        ("othe", 'did you mean "another"'),
        ("mann", 'did you mean "man"'),
        ("man#3", "2 times"),
        ("kite#2", "once"),
        ("man#0", "the first is"),
        ("", "empty"),
    ],
)
def test_find_word_explains(word, message):
    with pytest.raises(ValueError, match=message):
        find_word(CAPTION, word)


def test_find_word_matches_whole_words_and_literal_signs():
    assert find_word("A policeman and a man", "man") == (18, 21)
    assert find_word("C# and (x) here", "(x)") == (7, 10)
    assert find_word("a man#2 shirt", "shirt") == (8, 13)


def test_word_tokens(toy):
    assert word_tokens(toy, CAPTION, find_word(CAPTION, "man"), 24, 4) == [1]
    red = word_tokens(toy, CAPTION, find_word(CAPTION, "red kite"), 24, 4)
    pieces = toy.pieces(CAPTION)
    assert [pieces[position].spelled for position in red] == ["▁red", "▁kite"]


def test_word_tokens_keep_the_first_of_a_long_word(toy):
    caption = "A hippopotamus."
    found = word_tokens(toy, caption, find_word(caption, "hippopotamus"), 24, 4)
    pieces = toy.pieces(caption)
    assert [pieces[position].spelled for position in found] == list("hipp")


def test_word_that_is_cut_off_has_no_tokens(toy):
    span = find_word(CAPTION, "man")
    assert word_tokens(toy, CAPTION, span, 3, 4) == [1]
    assert word_tokens(toy, CAPTION, span, 2, 4) is None
    caption = "A zebra"
    assert word_tokens(toy, caption, find_word(caption, "zebra"), 6, 2) is None


def test_word_tokens_with_sentencepiece(sentencepiece_directory):
    tokenizer = load_tokenizer(sentencepiece_directory)
    caption = "The old dog and an old kite"
    found = word_tokens(tokenizer, caption, find_word(caption, "old#2"), 60, 8)
    pieces = tokenizer.pieces(caption)
    assert "".join(pieces[position].text for position in found) == "old"
    assert found[0] > 6


def test_without_pytorch_nothing_is_said_about_it():
    program = "import sys; sys.modules['torch'] = None; import tora2_jax.text"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
