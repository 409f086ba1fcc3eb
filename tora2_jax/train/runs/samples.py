"""Videos that a run makes of what it has learned so far."""

import gc
from pathlib import Path

from absl import logging
from flax import nnx

from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import first_line
from tora2_jax.parallel import processes
from tora2_jax.train.runs.export import model_of, on_first, shown_variables
from tora2_jax.train.stage import Stage
from tora2_jax.train.state import TrainState


def write_sample(
    config: TrainConfig, stage: Stage, graph: nnx.GraphDef, state: TrainState, workdir: Path
) -> None:
    """Writes `samples/STEP.mp4`, with the averaged weights if they are kept.

    All processes must call it together; the first of several makes the video, on its first
    device. If it cannot, that is a warning: a run is worth more than a video.
    """
    variables = on_first(shown_variables(state))
    if processes.is_first():
        step = int(state.step)
        try:
            _write(config, stage, graph, variables, step, workdir / "samples")
        except Exception as error:  # of any library, and of a device that is full
            logging.warning(
                "step %d has no sample video (%s: %s); the training goes on",
                step,
                type(error).__name__,
                first_line(error),
            )
        gc.collect()  # a sampler refers to itself, and its arrays would stay on the device
    processes.wait_for_all()


def _write(
    config: TrainConfig,
    stage: Stage,
    graph: nnx.GraphDef,
    variables: dict,
    step: int,
    folder: Path,
) -> None:
    from tora2_jax.media.video import write_video  # loads the codecs, which training does not need

    with processes.alone():
        frames = stage.sample(config, model_of(graph, variables), step)
    folder.mkdir(exist_ok=True)
    write_video(folder / f"{step:08d}.mp4", frames, fps=config.model.fps)
