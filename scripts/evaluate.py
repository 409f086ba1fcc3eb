"""Measures models.

    python scripts/evaluate.py world --checkpoint DIR [--requests 100] [--seed 0] [--output F.json]
    python scripts/evaluate.py one-word --checkpoint DIR [--requests 50]
    python scripts/evaluate.py base --checkpoint DIR [--requests 90] [--pictures DIR]
    python scripts/evaluate.py conditions --checkpoint DIR [--requests 200]
    python scripts/evaluate.py gate --vae FILE [--localizer FILE] [--judge FILE]

`world` tells how well generated entities follow their paths and keep their identities in the toy
world; `one-word` whether two entities that one word names are each at its own place with its own
looks; `base` whether a base draws what captions say, the rule by which it may be frozen;
`conditions` how much references and paths lower the loss over entities, by timestep and by
the way in which references reach the video; `gate` whether the two networks that measure this work
on videos that went through the VAE (exit status 1 if not).
"""

import argparse
import json
import sys
from pathlib import Path

from tora2_jax.config import ModelConfig, from_dict
from tora2_jax.errors import CheckpointError
from tora2_jax.evaluation import base, conditions, gate, look, report, requests, world
from tora2_jax.media.video import write_image
from tora2_jax.sampling.pipeline import SampleSettings, Tora2Pipeline
from tora2_jax.system import feedback
from tora2_jax.system.addresses import local_path
from tora2_jax.system.compile_cache import keep_compiled_programs
from tora2_jax.system.files import write_text
from tora2_jax.system.hub import weights_path
from tora2_jax.system.stop import exit_code
from tora2_jax.weights import checkpoint

_BOLD_LOCALIZER = "checkpoints/bold_bench/localizer.safetensors"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    written = argparse.ArgumentParser(add_help=False)
    written.add_argument("--output", type=local_path, help="write the numbers to this JSON file")
    common = argparse.ArgumentParser(add_help=False, parents=[written])
    common.add_argument(
        "--localizer",
        "--localiser",  # its name until 2026-11
        type=local_path,
        default="checkpoints/bench/localizer.safetensors",
    )
    common.add_argument("--judge", type=local_path, default="checkpoints/bench/judge.safetensors")
    for name, text in {
        "world": "bench of the toy world",
        "one-word": "two entities of one word: each at its place with its looks?",
    }.items():
        command = commands.add_parser(name, parents=[common], help=text)
        _add_generation(command, world.Settings())
    text = "does a base draw what its captions say? (--requests of either kind of caption)"
    base = commands.add_parser("base", parents=[written], help=text)
    _add_generation(base, world.Settings(requests=90, batch_size=30, steps=20, guidance=4.0))
    base.add_argument("--localizer", "--localiser", type=local_path, default=_BOLD_LOCALIZER)
    base.add_argument("--pictures", type=local_path, help="folder for a sheet of all drawings")
    text = "what references and paths contribute"
    parts = commands.add_parser("conditions", parents=[written], help=text)
    _add_requests(parts, requests=200, seed=0, batch_size=16)
    gate = commands.add_parser("gate", parents=[common], help="reliability through a VAE")
    gate.add_argument("--vae", type=local_path, required=True)
    gate.add_argument("--clips", type=int, default=64)
    return parser.parse_args()


def _add_requests(
    command: argparse.ArgumentParser, requests: int, seed: int, batch_size: int
) -> None:
    """What all commands that run a model on requests are told, with defaults."""
    command.add_argument("--checkpoint", type=weights_path, required=True)
    command.add_argument("--requests", type=int, default=requests)
    command.add_argument("--seed", type=int, default=seed)
    command.add_argument("--batch-size", type=int, default=batch_size)


def _add_generation(command: argparse.ArgumentParser, defaults: world.Settings) -> None:
    """And how those that generate do it."""
    _add_requests(command, defaults.requests, defaults.seed, defaults.batch_size)
    command.add_argument("--steps", type=int, default=defaults.steps)
    command.add_argument("--guidance", type=float, default=defaults.guidance)


def _settings(options: argparse.Namespace) -> world.Settings:
    return world.Settings(
        requests=options.requests,
        seed=options.seed,
        batch_size=min(options.batch_size, options.requests),
        steps=options.steps,
        guidance=options.guidance,
    )


def run_world(options: argparse.Namespace) -> int:
    """Prints the table of the toy world's bench."""
    settings = _settings(options)
    bench = look.load_bench(options.localizer, options.judge)
    pipeline = _pipeline(options)
    videos = settings.requests * len(requests.CONDITIONS)
    with feedback.bar("evaluating", videos, "video") as bar:
        measured = world.world(pipeline, bench, settings, keep=lambda *_: bar.update())
    print(report.table(measured))
    _write(options.output, measured)
    return 0


def run_one_word(options: argparse.Namespace) -> int:
    """Prints the share of entities that are at their place with their looks."""
    settings = _settings(options)
    pipeline = _pipeline(options)
    with feedback.working("evaluating"):
        measured = world.one_word(pipeline, settings)
    for name, value in measured["own_place_and_looks"].items():
        print(f"{name}: {100 * value['mean']:.1f} ± {100 * value['error']:.1f} % of entities")
    _write(options.output, measured)
    return 0


def run_base(options: argparse.Namespace) -> int:
    """Prints what a base draws of its captions; exit status 1 if it may not be frozen yet."""
    settings = _settings(options)
    localizer = look.load_localizer(options.localizer)
    pipeline = _pipeline(options)
    drawn: list = []
    with feedback.bar("drawing", 2 * settings.requests, "caption") as bar:
        measured = base.measure_base(
            pipeline,
            localizer,
            settings.requests,
            seed=settings.seed,
            settings=SampleSettings(steps=settings.steps, guidance=settings.guidance),
            batch_size=settings.batch_size,
            done=bar.update,
            keep=lambda caption, video: drawn.append((caption, video)),
        )
    print(base.table(measured))
    if options.pictures is not None:
        write_image(options.pictures / "base.png", base.sheet(drawn))
    _write(options.output, measured)
    return 0 if base.may_be_frozen(measured) else 1


def run_conditions(options: argparse.Namespace) -> int:
    """Prints what references and paths contribute to the loss over entities."""
    wrong = [name for name in ("requests", "batch_size") if getattr(options, name) < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} must be at least 1")
    pipeline = _pipeline(options)
    size = min(options.batch_size, options.requests)
    with feedback.bar("measuring", options.requests, "clip") as bar:
        measured = conditions.measure_conditions(
            pipeline, options.requests, options.seed, size, bar.update
        )
    print(conditions.table(measured))
    _write(options.output, measured)
    return 0


def run_gate(options: argparse.Namespace) -> int:
    """Prints whether the bench's networks can be trusted on videos of a VAE."""
    model = from_dict(ModelConfig, checkpoint.component_metadata(options.vae)["model"])
    bench = look.load_bench(options.localizer, options.judge)
    records = requests.world_requests(model, options.clips, seed=1_000)
    style = requests.style_of(model)
    with feedback.working("evaluating"):
        result = gate.gate(bench, gate.load_vae(model, options.vae), records, style)
    for name, estimate in result._asdict().items():
        print(f"{name:>12} {estimate.mean:.3f} ± {estimate.error:.3f}")
    print("passed" if result.passed else "failed: measurements of this model are not reliable")
    numbers = {name: estimate._asdict() for name, estimate in result._asdict().items()}
    _write(options.output, {**numbers, "passed": result.passed})
    return 0 if result.passed else 1


def _pipeline(options: argparse.Namespace) -> Tora2Pipeline:
    with feedback.working("reading the checkpoint"):
        return Tora2Pipeline.from_checkpoint(options.checkpoint)


def _write(path: Path | None, numbers: dict) -> None:
    if path is not None:
        write_text(path, json.dumps(numbers, indent=2) + "\n")


def main() -> int:
    """Runs the command; problems with files and values are told in one line each."""
    options = arguments()
    commands = {
        "world": run_world,
        "one-word": run_one_word,
        "base": run_base,
        "conditions": run_conditions,
        "gate": run_gate,
    }
    keep_compiled_programs()
    try:
        return commands[options.command](options)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(exit_code(main))
