"""The demo: two entities with references and drawn paths, from the shipped toy checkpoint.

python scripts/demo.py        writes out/demo.mp4 and out/demo.png, and prints what was measured
"""

import sys
import time
from pathlib import Path

import numpy as np

from tora2_jax import conditioning
from tora2_jax.evaluation import look
from tora2_jax.evaluation.requests import style_of
from tora2_jax.media import video
from tora2_jax.media.image_file import load_image
from tora2_jax.sampling import command
from tora2_jax.system.stop import exit_code

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "checkpoints" / "bench"


def main() -> int:
    """Sample the example request, draw it, and let the toy bench look at it."""
    options = command.Options(
        checkpoint=ROOT / "checkpoints" / "toy",
        request=ROOT / "examples" / "request.json",
        output=Path("out/demo.mp4"),
        overlay=True,
    )
    try:
        start = time.monotonic()
        job = command.prepare(options)
        sample = command.sample(options, job)
        seconds = time.monotonic() - start
        command.write(options, sample)
    except command.SamplingError as error:
        print(error, file=sys.stderr)
        return 2
    sheet = video.contact_sheet(sample.overlay(), columns=3, count=6)
    video.write_image("out/demo.png", sheet)
    report(job, sample.frames())
    print(f"sampled in {seconds:.0f} s; wrote out/demo.mp4 and out/demo.png")
    return 0


def report(job: command.Job, frames: np.ndarray) -> None:
    """Print of each entity where it is found and which reference it looks like."""
    bench = look.load_bench(BENCH / "localizer.safetensors", BENCH / "judge.safetensors")
    wanted, model = job.requests[0], job.model.config
    for entity in wanted.entities:
        track, visible = conditioning.request_track(entity, wanted, model)
        image = load_image(entity.images[0])
        seen = look.look_at_entity(
            bench, frames, entity.word, track, visible, image, style_of(model)
        )
        print(f"{entity.word}: {look.told(seen)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
