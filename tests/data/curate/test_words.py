"""Subjects of captions, by the tagger and by a language model behind a local server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tora2_jax.data.curate.annotate import words
from tora2_jax.data.curate.annotate.language_model import LanguageModel, LanguageModelError


@pytest.fixture(scope="module")
def tagger():
    return words.SpacyWords()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man and a kite in a meadow.", [("man", False), ("kite", False)]),
        ("Two men ride bicycles on the road.", [("men", True), ("bicycles", True)]),
        ("A video of a child and a ball at night.", [("child", False), ("ball", False)]),
        ("A cup of tea stands on the left.", [("cup", False)]),
        ("A group of people.", [("people", True)]),
        (
            "The old woman's dog runs after a tennis ball.",
            [("woman", False), ("dog", False), ("ball", False)],
        ),
        ("It is raining.", []),
        ("A dog runs at 30mph.", [("dog", False)]),
        ("мужчина бежит", []),
        ("", []),
    ],
)
def test_nouns_with_their_places_and_numbers(tagger, caption, expected):
    found = tagger(caption)
    assert [(one.word, one.plural) for one in found] == expected
    for one in found:
        assert caption[slice(*one.span)] == one.word


def test_people_are_human(tagger):
    kinds = {one.word: one.kind for one in tagger("A woman, some men and a dog.")}
    assert kinds == {"woman": "human", "men": "human", "dog": "object"}


def test_what_to_install_is_said():
    with pytest.raises(words.WordError, match=r"no_such_model.*\[curate\]"):
        words.SpacyWords("no_such_model")


@pytest.fixture
def server():
    """A service whose answer the test sets; it remembers what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append((self.path, dict(self.headers), body))
            self.send_response(self.server.status)
            self.end_headers()
            content = {"choices": [{"message": {"content": self.server.answer}}]}
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.answer, made.status = [], "[]", 200
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


CAPTION = "A man in a hat and another man feed two ducks."


def asked(server, **settings) -> words.LanguageModelWords:
    address = f"http://127.0.0.1:{server.server_port}/v1/"
    return words.LanguageModelWords(LanguageModel(address, "qwen", **settings))


def test_a_language_model_is_asked_and_its_words_are_found_in_the_caption(server):
    rows = [
        {"word": "man", "plural": False, "human": True},
        {"word": "hat"},
        {"word": "Man", "human": True},
        {"word": "ducks", "plural": True},
        {"word": "pond"},  # does not stand there
        {"word": 3},
        "man",
    ]
    server.answer = f"Here you are:\n```json\n{json.dumps(rows)}\n```"
    found = asked(server, key="secret")(CAPTION)
    assert [(one.word, one.plural, one.kind) for one in found] == [
        ("man", False, "human"),
        ("hat", False, "object"),
        ("man", False, "human"),
        ("ducks", True, "object"),
    ]
    assert [one.span[0] for one in found] == [2, 11, 27, 40]
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "qwen" and body["messages"][-1]["content"] == CAPTION


@pytest.mark.parametrize("answer", ["no idea", '{"word": "man"}', "[{]"])
def test_an_answer_that_is_no_list_is_an_error(server, answer):
    server.answer = answer
    with pytest.raises(LanguageModelError, match="gives no list of subjects"):
        asked(server)(CAPTION)


def test_a_service_that_fails_is_an_error(server):
    server.status = 500
    with pytest.raises(LanguageModelError, match="does not answer: HTTP Error 500"):
        asked(server)(CAPTION)
    with pytest.raises(LanguageModelError, match="does not answer"):
        words.LanguageModelWords(LanguageModel("http://127.0.0.1:9/v1", "qwen"))(CAPTION)
