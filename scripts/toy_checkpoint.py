"""Train the toy checkpoint: the whole chain of stages, or its tail.

python scripts/toy_checkpoint.py --from-stage vae      (the whole chain)
python scripts/toy_checkpoint.py --from-stage joint    (the last two stages)
python scripts/toy_checkpoint.py --chain bold          (the chain of the bold world, in the making)
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# In the order of the chain: every stage needs the ones before it, the bench's two nothing.
STAGES = {
    "vae": "configs/toy_vae.py",
    "vae_fine": "configs/toy_vae_fine.py",
    "face": "configs/toy_face.py",
    "object": "configs/toy_object.py",
    "dino": "configs/toy_dino.py",
    "localizer": "configs/bench_localizer.py",
    "judge": "configs/bench_judge.py",
    "base": "configs/toy_base.py",
    "base_fine": "configs/toy_base_fine.py",
    "motion": "configs/toy_motion.py",
    "joint": "configs/toy.py",
    "joint_fine": "configs/toy_fine.py",
}

# Where the shipped files lie. This script alone writes them: a run of its own keeps its result in
# its folder, as the two first parts (vae, base) do, from which the second ones start.
SHIPPED = {
    "vae_fine": "checkpoints/toy/vae.safetensors",
    "face": "checkpoints/toy/face.safetensors",
    "object": "checkpoints/toy/object.safetensors",
    "dino": "checkpoints/toy/dino.safetensors",
    "localizer": "checkpoints/bench/localizer.safetensors",
    "judge": "checkpoints/bench/judge.safetensors",
    "base_fine": "checkpoints/toy",
    "motion": "checkpoints/toy/stages",  # the joint stage trains this on; its result lies above
    "joint": "checkpoints/toy",
    "joint_fine": "checkpoints/toy",
}


class Chain(NamedTuple):
    """Stages in their order, and where the shipped files lie."""

    stages: Mapping[str, str]
    shipped: Mapping[str, str]


_BOLD = {
    "vae": "stages/vae.safetensors",  # goes on in the next one
    "vae_fine": "vae.safetensors",
    "localizer": "../bold_bench/localizer.safetensors",
    "judge": "../bold_bench/judge.safetensors",
    "object": "object.safetensors",
    "face": "face.safetensors",
    "dino": "dino.safetensors",
    "base_stills": "stages/base_stills",
    "base_middle": "stages/base_middle",
    "base_one": "stages/base_one",
    "base_clips": "stages/base_clips",
    "base_last": "",
    "joint_stills": "stages/joint_stills",
    "joint": "",
}
CHAINS = {
    "toy": Chain(STAGES, SHIPPED),
    "bold": Chain(
        {name: f"configs/bold/{name}.py" for name in _BOLD},
        {name: os.path.normpath(f"checkpoints/bold/{place}") for name, place in _BOLD.items()},
    ),
}

# A step's large buffers stay with the process. By default they go back to the kernel after every
# step, and clearing them again as new pages took half of the time of a stage of small tensors.
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def main() -> int:
    """Run the stages one after another; a stage that was interrupted goes on where it was."""
    parser = argparse.ArgumentParser(description="Train the toy checkpoint.")
    parser.add_argument("--chain", choices=tuple(CHAINS), default="toy")
    parser.add_argument("--from-stage", default="vae", help="one of the chain's stages")
    parser.add_argument("--only", action="store_true", help="that stage alone, not the tail")
    parser.add_argument("--fresh", action="store_true", help="forget earlier, unfinished runs")
    options = parser.parse_args()
    os.chdir(ROOT)
    chain = CHAINS[options.chain]
    names = list(chain.stages)
    if options.from_stage not in names:
        parser.error(f"--from-stage: the chain {options.chain} has {', '.join(names)}")
    home = ROOT / "workdirs" / ("" if options.chain == "toy" else options.chain)
    first = names.index(options.from_stage)
    for name in names[first : first + 1] if options.only else names[first:]:
        workdir = home / name
        if options.fresh:
            shutil.rmtree(workdir, ignore_errors=True)
        start = time.monotonic()
        code = subprocess.call(command(name, workdir, chain), env={**MEMORY, **os.environ})
        if code:
            print(f"stage {name} stopped with exit code {code}", file=sys.stderr)
            return code
        print(f"stage {name}: {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


def command(name: str, workdir: Path, chain: Chain = CHAINS["toy"]) -> list[str]:
    """The training program's command line for a stage of the chain."""
    program = [sys.executable, "-m", "tora2_jax.train", "--config", chain.stages[name]]
    export = [f"--config.export={chain.shipped[name]}"] if name in chain.shipped else []
    return [*program, "--workdir", str(workdir), *export]


if __name__ == "__main__":
    sys.exit(main())
