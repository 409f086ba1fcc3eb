"""Measures models.

    python scripts/evaluate.py world --checkpoint DIR [--requests 100] [--seed 0] [--output F.json]
    python scripts/evaluate.py gate --vae FILE [--localiser FILE] [--judge FILE]

`world` tells how well generated entities follow their paths and keep their identities in the toy
world; `gate` whether the two networks that measure this work on videos that went through the VAE
(exit status 1 if not).
"""

import argparse
import json
import sys
from pathlib import Path

from tora2_jax import config, evaluate
from tora2_jax.addresses import local_path
from tora2_jax.checkpoint import CheckpointError
from tora2_jax.pipeline import Tora2Pipeline
from tora2_jax.whole_file import write_text


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--localiser", type=local_path, default="checkpoints/bench/localiser.safetensors"
    )
    common.add_argument("--judge", type=local_path, default="checkpoints/bench/judge.safetensors")
    common.add_argument("--output", type=local_path, help="write the numbers to this JSON file")
    defaults = evaluate.Settings()
    world = commands.add_parser("world", parents=[common], help="bench of the toy world")
    world.add_argument("--checkpoint", type=local_path, required=True)
    world.add_argument("--requests", type=int, default=defaults.requests)
    world.add_argument("--seed", type=int, default=defaults.seed)
    world.add_argument("--batch-size", type=int, default=defaults.batch_size)
    world.add_argument("--steps", type=int, default=defaults.steps)
    world.add_argument("--guidance", type=float, default=defaults.guidance)
    gate = commands.add_parser("gate", parents=[common], help="reliability through a VAE")
    gate.add_argument("--vae", type=local_path, required=True)
    gate.add_argument("--clips", type=int, default=64)
    return parser.parse_args()


def run_world(options: argparse.Namespace) -> int:
    """Prints the table of the toy world's bench."""
    settings = evaluate.Settings(
        requests=options.requests,
        seed=options.seed,
        batch_size=min(options.batch_size, options.requests),
        steps=options.steps,
        guidance=options.guidance,
    )
    bench = evaluate.load_bench(options.localiser, options.judge)
    measured = evaluate.world(Tora2Pipeline.from_checkpoint(options.checkpoint), bench, settings)
    print(evaluate.table(measured))
    _write(options.output, measured)
    return 0


def run_gate(options: argparse.Namespace) -> int:
    """Prints whether the bench's networks can be trusted on videos of a VAE."""
    model = config.toy()
    bench = evaluate.load_bench(options.localiser, options.judge)
    records = evaluate.world_requests(model, options.clips, seed=1_000)
    result = evaluate.gate(bench, evaluate.load_vae(model, options.vae), records)
    for name, estimate in result._asdict().items():
        print(f"{name:>12} {estimate.mean:.3f} ± {estimate.error:.3f}")
    print("passed" if result.passed else "failed: measurements of this model are not reliable")
    numbers = {name: estimate._asdict() for name, estimate in result._asdict().items()}
    _write(options.output, {**numbers, "passed": result.passed})
    return 0 if result.passed else 1


def _write(path: Path | None, numbers: dict) -> None:
    if path is not None:
        write_text(path, json.dumps(numbers, indent=2) + "\n")


def main() -> int:
    """Runs the command; problems with files and values are told in one line each."""
    options = arguments()
    try:
        return {"world": run_world, "gate": run_gate}[options.command](options)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
