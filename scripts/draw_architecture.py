"""Draws the way of a request and of a batch through the rooms, as the programs go it.

    python scripts/draw_architecture.py --output docs/architecture.svg

Both are run on the shipped toy model, with one sampling step and one training step; each room is
drawn where its first function is called, with the modules that are entered and by which function.
"""

import argparse
import importlib
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tora2_jax"
TOY = ROOT / "checkpoints" / "toy"
_WIDTH, _LINE, _GAP, _TOP = 480, 17, 14, 76
_HIDDEN = {"system", "errors", "types", "moved"}  # helpers of all rooms; `types` holds no code

Walk = dict[str, dict[str, str]]  # room -> module -> the function it was entered by, in order


def walk(run: Callable[[], object]) -> Walk:
    """The rooms and modules whose public functions `run` calls, in the order of the first call."""
    found: Walk = {}
    prefix = f"{PACKAGE}/"

    def note(frame, event: str, _) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(prefix):
            return
        function = frame.f_code.co_qualname
        if any(part.startswith(("_", "<")) for part in function.split(".")):
            return
        parts = Path(frame.f_code.co_filename[len(prefix) :]).with_suffix("").parts
        if parts[0] not in _HIDDEN:
            found.setdefault(parts[0], {}).setdefault("/".join(parts[1:]) or parts[0], function)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def import_all() -> None:
    """So that nothing is imported on the way: class bodies run then, and are no calls."""
    import tora2_jax

    for module in pkgutil.walk_packages(tora2_jax.__path__, "tora2_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def request() -> None:
    """Samples the example request, one step."""
    from tora2_jax import Tora2Pipeline
    from tora2_jax.sampling.settings import SampleSettings

    pipeline = Tora2Pipeline.from_checkpoint(TOY)
    pipeline.generate(ROOT / "examples" / "request.json", settings=SampleSettings(steps=1))


def batch() -> None:
    """Trains the toy's last stage, one step on four clips."""
    from configs import toy
    from tora2_jax.train import loop

    with tempfile.TemporaryDirectory() as folder:
        config = toy.get_config()
        config.steps, config.batch_size, config.data_size = 1, 4, 4
        config.cache_dir, config.export = f"{folder}/cache", f"{folder}/trained"
        loop.train(config, f"{folder}/run")


def lane(title: str, found: Walk, left: int) -> tuple[list[str], int]:
    """One way as parts of an SVG picture, and where it ends."""
    parts = [f'<text x="{left}" y="52" class="title">{escape(title)}</text>']
    top = _TOP
    for index, (room, modules) in enumerate(found.items()):
        height = _LINE * (len(modules) + 1) + 14
        if index:
            middle = left + 24
            parts.append(
                f'<path d="M{middle} {top - _GAP} v{_GAP - 4}" class="way" marker-end="url(#end)"/>'
            )
        parts.append(
            f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{height}" rx="6" class="room"/>'
            f'<text x="{left + 12}" y="{top + 19}" class="name">{escape(room)}</text>'
        )
        for row, (module, function) in enumerate(modules.items(), start=1):
            y = top + 19 + _LINE * row
            parts.append(
                f'<text x="{left + 12}" y="{y}">{escape(module)}</text>'
                f'<text x="{left + 190}" y="{y}" class="soft">{escape(function)}</text>'
            )
        top += height + _GAP
    return parts, top


def draw(ways: dict[str, Walk]) -> str:
    """The whole picture."""
    parts, bottom = [], 0
    for number, (title, found) in enumerate(ways.items()):
        drawn, end = lane(title, found, 24 + number * (_WIDTH + 40))
        parts += drawn
        bottom = max(bottom, end)
    width = 24 + len(ways) * (_WIDTH + 40) - 16
    style = (
        "text{font:13px ui-sans-serif,Helvetica,Arial,sans-serif;fill:#24292f}"
        ".title{font-size:17px;font-weight:600}.name{font-weight:600}.soft{fill:#57606a}"
        ".room{fill:#f6f8fa;stroke:#d0d7de}.way{stroke:#57606a;fill:none;stroke-width:1.5}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" '
        f'width="{width}" height="{bottom}">\n<style>{style}</style>\n'
        '<defs><marker id="end" markerWidth="7" markerHeight="7" refX="4" refY="3.5" '
        'orient="auto"><path d="M0 0 L7 3.5 L0 7 z" fill="#57606a"/></marker></defs>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> int:
    """Runs both ways, and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "architecture.svg")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    import_all()
    ways = {"A request, from its file to frames": walk(request)}
    ways["A batch, from clips to a checkpoint"] = walk(batch)
    options.output.write_text(draw(ways))
    for title, found in ways.items():
        print(title, *(f"  {room}: {', '.join(names)}" for room, names in found.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
