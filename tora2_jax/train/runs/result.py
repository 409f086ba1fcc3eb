"""What a run tells at its end: where its result lies, and what to do with it."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tora2_jax.config import ModelConfig, to_dict
from tora2_jax.config.train import TrainConfig
from tora2_jax.system.files import write_text
from tora2_jax.train.runs.export import export_paths

EXAMPLE = Path("examples/request.json")  # of the toy world: both kinds of conditions


def result_lines(config: TrainConfig, workdir: Path, components: Iterable[str]) -> list[str]:
    """Where the result of a finished run lies and the command that samples it, or that uses it.

    Args:
        config: Of the run, with the place of its export.
        workdir: Its folder.
        components: Names of those that it has trained.
    """
    lines = [f"all {config.steps} steps are done; checkpoints and metrics are in {workdir}"]
    paths = export_paths(config.export, list(components)) if config.export else {}
    if paths:
        lines.append(f"trained weights: {', '.join(map(str, paths.values()))}")
    if makes_videos(config):
        return [*lines, f"sample them: {sample_command(config, workdir)}"]
    known = to_dict(config.weights)
    for name, path in paths.items():
        slot = name if name in known else config.stage
        if slot in known:
            lines.append(f"use them in another stage: --config.weights.{slot}={path}")
    return lines


def makes_videos(config: TrainConfig) -> bool:
    """Whether the folder of the run is a checkpoint that samples."""
    from tora2_jax.weights.run_networks import TRAINED

    return config.stage in TRAINED and config.tokenizer is not None


def sample_command(config: TrainConfig, workdir: Path) -> str:
    """The command line that makes a video with what a run has learned.

    It names a request that suits the model; without an example for all that it takes, a plain one
    is written into the folder of the run.
    """
    output = Path("out") / f"{workdir.name}.mp4"
    words = ["python", "scripts/sample.py", "--checkpoint", str(workdir)]
    words += ["--request", str(_request(config.model, workdir)), "--output", str(output)]
    if config.face_models is not None and config.model.face_detector != "mask_top":
        words += ["--face-models", config.face_models]
    return shlex.join(words)


def _request(model: ModelConfig, workdir: Path) -> Path:
    if model.takes_image:
        return Path("REQUEST.json")  # it needs a first frame (docs/request.md)
    if model.motion and model.personalization and EXAMPLE.is_file():
        return EXAMPLE
    path = workdir / "request.json"
    write_text(path, json.dumps(plain_request(model), indent=2) + "\n")
    return path


def plain_request(model: ModelConfig) -> dict[str, Any]:
    """A request without pictures: a prompt, and two paths if the model follows paths."""
    request: dict[str, Any] = {"prompt": "A man and a kite in a meadow."}
    if model.motion is not None:
        paths = {"man": [[50, 180], [200, 190]], "kite": [[200, 110], [60, 60]]}
        kinds = {"man": "human", "kite": "object"}
        request["entities"] = [
            {"word": word, "kind": kinds[word], "trajectory": path} for word, path in paths.items()
        ]
    return request
