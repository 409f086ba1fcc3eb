"""The editor of prompt, entities, paths and times: a component of our own, without a build step."""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import gradio

# They share one scope, in this order.
_SCRIPTS = ("tools", "state", "shapes", "canvas", "timeline", "entities", "main")


def editor(
    value: dict[str, Any], limits: dict[str, Any], functions: Sequence[Callable]
) -> gradio.HTML:
    """The component; its value is a drawing, see `drawing.py`.

    Args:
        value: the drawing that is shown first.
        limits: what the model takes: `entities`, `references` (of one entity), and whether it
            starts from an `image`.
        functions: what the scripts in `web/` ask the page: `add_picture`, `pictures`, `check`,
            `read_paths`, `write_paths`.
    """
    return gradio.HTML(
        value=value,
        html_template=_text("editor.html"),
        css_template=_text("editor.css"),
        js_on_load="\n".join(_text(f"{name}.js") for name in _SCRIPTS),
        apply_default_css=False,
        server_functions=list(functions),
        elem_id="editor",
        limits=limits,
    )


def _text(name: str) -> str:
    return resources.files("tora2_jax.studio").joinpath("web", name).read_text(encoding="utf-8")
