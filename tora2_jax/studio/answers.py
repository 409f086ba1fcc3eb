"""What the editor asks the page; whatever it sends, the answer is a value or says what is wrong."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from tora2_jax.config.model import ModelConfig
from tora2_jax.errors import printable
from tora2_jax.request import RequestError
from tora2_jax.studio import drawing, paths
from tora2_jax.studio.shelf import Shelf, ShelfError
from tora2_jax.system import limits
from tora2_jax.trajectory.points import TrajectoryError

_LOG = logging.getLogger(__name__)
Answer = dict[str, Any]
_SEEN_AT_ONCE = 64


def _told(function: Callable[[Any], Answer]) -> Callable[[Any], Answer]:
    """An answer with `problems` in the place of an error."""

    @functools.wraps(function)
    def answer(given: Any) -> Answer:
        try:
            return function(given)
        except (RequestError, TrajectoryError) as error:
            return {"problems": list(error.problems)}
        except ShelfError as error:
            return {"problems": [printable(str(error))]}
        except Exception as error:  # a fault of ours; the page goes on
            _LOG.exception(f"studio: {function.__name__}")
            return {"problems": [f"the studio failed: {type(error).__name__}"]}

    return answer


def answers(shelf: Shelf, model: ModelConfig, tokenizer) -> list[Callable[[Any], Answer]]:
    """The functions of `editor`, by the names that its scripts know.

    Args:
        shelf: where pictures go.
        model: what drawings are checked against.
        tokenizer: of the same checkpoint.
    """

    @_told
    def add_picture(given: Any) -> Answer:
        if not isinstance(given, dict):
            raise ShelfError("no picture arrived")
        name = shelf.add_text(given.get("data", ""), _called(given.get("name")))
        return {"name": name, "seen": shelf.seen(name)}

    @_told
    def pictures(given: Any) -> Answer:
        names = given[:_SEEN_AT_ONCE] if isinstance(given, list) else []
        return {"seen": {name: shelf.seen(name) for name in names if shelf.path(name)}}

    @_told
    def check(given: Any) -> Answer:
        found = drawing.check(given, shelf, model, tokenizer)
        told = {"problems": found.problems, "notes": found.notes, "tracks": found.tracks}
        return told | {"image": found.first_frame()}

    @_told
    def read_paths(given: Any) -> Answer:
        return paths.read(given)

    @_told
    def write_paths(given: Any) -> Answer:
        if not isinstance(given, dict):
            raise ShelfError("no drawing arrived")
        found = drawing.check(given.get("drawing"), shelf, model, tokenizer)
        if found.request is None:
            raise RequestError(found.lines())
        return {"files": paths.written(found.request, given.get("form"), model)}

    return [add_picture, pictures, check, read_paths, write_paths]


def _called(name: Any) -> str:
    """What a message calls a picture: its file's name as text, cut, never as a path."""
    text = printable(name) if isinstance(name, str) else ""
    return text[: limits.WORD_CHARACTERS] or "the picture"
