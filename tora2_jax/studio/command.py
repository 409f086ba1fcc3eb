"""Opens the page: what `scripts/studio.py` runs."""

import os
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from tora2_jax.errors import CheckpointError, MessageError
from tora2_jax.references.faces import FaceModelError
from tora2_jax.request.reader import SIZES
from tora2_jax.sampling.pipeline import Tora2Pipeline
from tora2_jax.studio import drawing, jobs
from tora2_jax.studio.shelf import Shelf
from tora2_jax.system import feedback
from tora2_jax.system.compile_cache import keep_compiled_programs

_PORTS = range(7860, 7880)  # the first that is free, if none is asked for


class StudioError(MessageError):
    """The page cannot be opened."""


class Options(NamedTuple):
    """The command line of `scripts/studio.py`."""

    checkpoint: Path
    host: str = "127.0.0.1"
    port: int | None = None  # None: the first free one
    browser: bool = True  # open it
    steps: int | None = None  # that the page begins with; None: as the checkpoint says
    request: Path | None = None  # the drawing that the page begins with, if it fits the model
    dtype: Literal["bfloat16", "float32"] = "float32"
    face_models: Path | None = None


def run(options: Options, say: Callable[[str], None] = print) -> None:
    """Serves the page until it is interrupted; whatever it wrote is removed then.

    Raises:
        StudioError: the page cannot be opened; the message says why.
    """
    _check_packages()
    listening = _listen(options.host, options.port)
    with listening, tempfile.TemporaryDirectory(prefix="tora2_studio_") as name:
        # Gradio reads these when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(name) / "served")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        served = _served(options, Path(name))
        host, port = listening.getsockname()[:2]
        shown = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}/"
        server = _server(served)
        opened = threading.Thread(target=_announce, args=(server, shown, options, say), daemon=True)
        opened.start()
        try:
            server.run(sockets=[listening])
        finally:
            jobs.end_all()


def _check_packages() -> None:
    try:
        import gradio
        import uvicorn
    except ImportError as error:
        raise StudioError(
            f"the studio needs {error.name}; install it with `pip install -e '.[studio]'`, or run "
            "`make studio`"
        ) from error
    del gradio, uvicorn


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket at the port, or at the first free one."""
    reason = None
    for wanted in _PORTS if port is None else (port,):
        try:
            return socket.create_server((host, wanted))
        except (OSError, OverflowError) as error:
            reason = error
    told = f"port {port}" if port is not None else f"any port from {_PORTS[0]} to {_PORTS[-1]}"
    raise StudioError(f"--port: {told} of {host} cannot be used: {reason}")


def _served(options: Options, folder: Path) -> Any:
    """The guarded application."""
    import gradio
    from fastapi import FastAPI

    from tora2_jax.studio import guard, page

    keep_compiled_programs()
    try:
        with feedback.working("reading the checkpoint"):
            pipeline = Tora2Pipeline.from_checkpoint(
                options.checkpoint, jnp.dtype(options.dtype), face_models=options.face_models
            )
    except (CheckpointError, FaceModelError, OSError) as error:
        raise StudioError(str(error)) from error
    shelf = Shelf(folder)
    settings = pipeline.settings
    if options.steps is not None:
        settings = settings._replace(steps=options.steps)
    studio = page.Studio(
        pipeline, options.checkpoint.name, shelf, _start(options, pipeline, shelf), settings
    )
    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page.build(studio),
        path="/",
        server_name=options.host,
        footer_links=[],
        show_error=False,
        max_file_size=guard.UPLOAD_BYTES,
        ssr_mode=False,
        # Gradio's own theme would fetch its fonts from a server.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    return guard.Guard(app, guard.LOCAL, others=options.host not in guard.LOCAL)


def _start(options: Options, pipeline: Tora2Pipeline, shelf: Shelf) -> dict[str, Any]:
    """The drawing that the page begins with: the given one if it fits the model, or none."""
    model = pipeline.config
    sizes = {name: getattr(model, name) for name in SIZES}
    canvas = [256, round(256 * model.height / model.width, 2)]
    empty = {"prompt": "", "canvas": canvas, "image": None, "entities": [], **sizes}
    if options.request is None:
        return empty
    try:
        found = sizes | drawing.unpack_file(options.request, shelf)
    except MessageError as error:
        raise StudioError(f"--request: {options.request}: {error}") from error
    fits = drawing.check(found, shelf, model, pipeline.tokenizer).request is not None
    return found if fits else empty


def _server(app: Any) -> Any:
    import uvicorn

    # `server_header` would tell its version.
    settings: dict[str, Any] = {"log_level": "warning", "server_header": False}
    settings["ws_max_size"] = 2**20
    settings["timeout_graceful_shutdown"] = 2  # an open page would hold it for ever
    return uvicorn.Server(uvicorn.Config(app, **settings))


def _announce(server: Any, address: str, options: Options, say: Callable[[str], None]) -> None:
    """Says where the page is, once it is there, and opens it."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    say(f"the studio is at {address} (Ctrl+C ends it)")
    if options.browser and sys.stdout.isatty():
        webbrowser.open(address)
