"""A language model behind the OpenAI-compatible HTTP interface, as people run Qwen with vLLM."""

import json
import urllib.error
import urllib.request
from typing import Any

_SECONDS = 120  # that an answer may take


class LanguageModelError(RuntimeError):
    """No answer, or one that is none; such a clip is counted and the run goes on."""


class LanguageModel:
    """A service that answers.

    Args:
        address: up to `/v1`.
        model: its name there.
        key: sent as a bearer token, if it wants one.
    """

    def __init__(self, address: str, model: str, key: str | None = None):
        self.address, self._model, self._key = address.rstrip("/"), model, key

    def answer(self, messages: list[dict[str, Any]]) -> str:
        """What it says to messages in the interface's own form.

        Raises:
            LanguageModelError: it cannot be reached, refuses, or says nothing.
        """
        content = {"model": self._model, "temperature": 0, "messages": messages}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self.address}/chat/completions", json.dumps(content).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                said = json.load(response)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise LanguageModelError(f"{self.address} does not answer: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise LanguageModelError(f"{self.address} does not answer as it should") from error
        if not isinstance(said, str) or not said.strip():
            raise LanguageModelError(f"{self.address} says nothing")
        return said
