"""Samples requests and draws what was asked for beside what came, as moving pictures.

    python scripts/make_gallery.py page examples/*.json --output docs/gallery.md
    python scripts/make_gallery.py rows one.json other.json --output docs/demo.webp

`page` writes one picture per request and a Markdown page that shows them, with what the bench of
the toy world measures. `rows` puts all requests into one picture, from one noise: the same request
with other references or with exchanged paths, under each other.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from tora2_jax import conditioning
from tora2_jax.evaluation import look
from tora2_jax.evaluation.requests import style_of
from tora2_jax.media.animation import request_row, stacked, write_animation
from tora2_jax.media.image_file import load_image
from tora2_jax.sampling import command
from tora2_jax.system.addresses import local_path
from tora2_jax.system.files import write_text
from tora2_jax.system.stop import exit_code

_PAGE = """# Gallery

Videos of the toy model for the requests in `{folder}`, none chosen, failures included: one seed,
{steps} steps. At the left the drawn paths and the references, at the right the video, enlarged
without smoothing. Made by `scripts/make_gallery.py`.
"""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=("page", "rows"))
    parser.add_argument("requests", type=local_path, nargs="+", metavar="REQUEST")
    parser.add_argument("--checkpoint", type=local_path, default=Path("checkpoints/toy"))
    parser.add_argument("--bench", type=local_path, default=Path("checkpoints/bench"))
    parser.add_argument("--output", type=local_path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def main() -> int:
    """Sample all requests as one batch of one seed, and draw them."""
    options = arguments()
    rows, told, prompts = [], [], []
    for path in options.requests:
        settings = command.Options(
            checkpoint=options.checkpoint,
            request=path,
            output=options.output.with_suffix(".mp4"),  # none is written
            steps=options.steps,
            seed=options.seed,
        )
        try:
            job = command.prepare(settings)
            frames = command.sample(settings, job).frames()
        except command.SamplingError as error:
            print(error, file=sys.stderr)
            return 2
        rows.append(_row(job, frames))
        told.append(_measured(job, frames, options.bench) if options.form == "page" else [])
        prompts.append(job.requests[0].prompt)
    if options.form == "rows":
        write_animation(options.output, stacked(rows))
        return 0
    folder = options.output.parent / options.output.stem
    page = [_PAGE.format(folder=options.requests[0].parent, steps=options.steps)]
    for path, row, lines, prompt in zip(options.requests, rows, told, prompts, strict=True):
        write_animation(folder / f"{path.stem}.webp", row)
        picture = f"![{prompt}]({folder.name}/{path.stem}.webp)"
        page.append("\n".join([f"## {prompt}", picture, "", *lines, ""]))
    write_text(options.output, "\n".join(page))
    return 0


def _row(job: command.Job, frames: np.ndarray) -> np.ndarray:
    wanted = job.requests[0]
    pairs = [
        conditioning.request_track(entity, wanted, job.model.config) for entity in wanted.entities
    ]
    return request_row(
        frames,
        np.stack([track for track, _ in pairs]),
        np.stack([visible for _, visible in pairs]),
        [entity.word for entity in wanted.entities],
        [[load_image(image) for image in entity.images] for entity in wanted.entities],
    )


def _measured(job: command.Job, frames: np.ndarray, folder: Path) -> list[str]:
    bench = look.load_bench(folder / "localizer.safetensors", folder / "judge.safetensors")
    wanted, model = job.requests[0], job.model.config
    lines = []
    for entity in wanted.entities:
        track, visible = conditioning.request_track(entity, wanted, model)
        image = load_image(entity.images[0])
        seen = look.look_at_entity(
            bench, frames, entity.word, track, visible, image, style_of(model)
        )
        lines.append(f"- {entity.word}: {look.told(seen)}")
    return lines


if __name__ == "__main__":
    sys.exit(exit_code(main))
