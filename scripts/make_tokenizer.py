"""Writes the tokenizer of the toy world: one token per word, letters for everything else.

    python scripts/make_tokenizer.py --output checkpoints/toy/tokenizer
    python scripts/make_tokenizer.py --rich --output checkpoints/bold/tokenizer

The same corpus always gives the same files.
"""

import argparse
import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tora2_jax.system.addresses import local_path

SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's ids 0, 1 and 2
SPACE = "▁"
LETTERS = string.ascii_lowercase + string.digits + ".,;:!?'\"()-#&"
LETTER_SCORE = -20.0  # below any word's, so that a known word is never spelt
VOCABULARY = 256


def build(corpus: Iterable[str], size: int = VOCABULARY) -> Tokenizer:
    """A Unigram tokenizer with T5's special ids, whose offsets refer to the given text.

    Args:
        corpus: sentences; every word of theirs becomes one token.
        size: tokens allowed in all.

    Raises:
        ValueError: the corpus has more words than fit.
    """
    words = Counter(word for text in corpus for word in re.findall(r"[a-z0-9]+", text.lower()))
    letters = SPACE + LETTERS
    room = size - len(SPECIAL) - len(letters)
    if len(words) > room:
        raise ValueError(f"the corpus has {len(words)} words; {room} fit into {size} tokens.")
    total = sum(words.values())
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [(letter, LETTER_SCORE) for letter in letters]
    vocabulary += [(SPACE + word, math.log(count / total)) for word, count in ranked]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes what `transformers` needs to load the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    from tora2_jax.world.captions import caption_corpus, rich_corpus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=local_path, required=True, help="folder to write")
    parser.add_argument("--rich", action="store_true", help="also the words of rich captions")
    arguments = parser.parse_args()
    corpus = chain(caption_corpus(), rich_corpus() if arguments.rich else ())
    tokenizer = build(corpus)
    save(tokenizer, arguments.output)
    print(f"{arguments.output}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
