"""The demo: two entities with references and drawn paths, from the shipped toy checkpoint.

python scripts/demo.py        writes out/demo.mp4 and out/demo.png, and prints what was measured
"""

import sys
import time
from pathlib import Path

import numpy as np

from tora2_jax import conditioning, evaluate, pipeline, sampling, video
from tora2_jax.bench.measure import ABSENT
from tora2_jax.image_file import load_image

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "checkpoints" / "bench"


def main() -> int:
    """Sample the example request, draw it, and let the toy bench look at it."""
    options = sampling.Options(
        checkpoint=ROOT / "checkpoints" / "toy",
        request=ROOT / "examples" / "request.json",
        output=Path("out/demo.mp4"),
        overlay=True,
    )
    try:
        start = time.monotonic()
        job = sampling.prepare(options)
        sample = sampling.sample(options, job)
        seconds = time.monotonic() - start
        sampling.write(options, job, sample)
    except sampling.SamplingError as error:
        print(error, file=sys.stderr)
        return 2
    frames = pipeline.to_uint8(sample.video[0])
    shown = sampling.draw_overlay(frames, job.requests[0], job.model.config)
    video.write_image("out/demo.png", video.contact_sheet(shown, columns=3, count=6))
    report(job, frames)
    print(f"sampled in {seconds:.0f} s; wrote out/demo.mp4 and out/demo.png")
    return 0


def report(job: sampling.Job, frames: np.ndarray) -> None:
    """Print trajectory error and reference similarity of each entity."""
    bench = evaluate.load_bench(BENCH / "localiser.safetensors", BENCH / "judge.safetensors")
    wanted = job.requests[0]
    for entity in wanted.entities:
        track, visible = conditioning.request_track(entity, wanted, job.model.config)
        measured = evaluate.look_at_entity(
            bench, frames, entity.word, track, visible, load_image(entity.images[0])
        )
        error = f"{entity.word}: trajectory error {measured.error:.1f} px on a 256 canvas"
        if np.isnan(measured.similarity):
            print(f"{error}; the bench does not recognise it in any frame")
            continue
        print(
            f"{error}, similarity to its reference {measured.similarity:.2f} "
            f"(to {measured.others} others on average {measured.others_similarity:.2f})"
        )
    print(
        f"a frame in which the bench does not find an entity counts {ABSENT:.0f} px (docs/toy.md)"
    )


if __name__ == "__main__":
    sys.exit(main())
