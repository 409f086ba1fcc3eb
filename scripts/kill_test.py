"""Kill a training run again and again; it must go on as if nothing had happened, to the last bit.

python scripts/kill_test.py --kills 30 --folder workdirs/kill_test

A run of the toy model's face encoder (this file is its config) is ended by SIGKILL while it starts,
trains or saves, by SIGTERM, and by SIGKILL after SIGTERM, and started again each time. Every
checkpoint that was the last at such an end is compared with the run that nobody interrupted.
About ten seconds per kill.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import toy_face  # noqa: E402
from tora2_jax.config.train import OptimConfig, TrainConfig  # noqa: E402
from tora2_jax.system.addresses import local_path  # noqa: E402
from tora2_jax.train import loop  # noqa: E402
from tora2_jax.train import state as train_state  # noqa: E402
from tora2_jax.train.runs.checkpoints import Checkpoints  # noqa: E402

KINDS = ("starting", "training", "saving", "stop", "stop, then kill")
ITEMS = ("trainable", "statistics", "optimizer", "average")


def get_config() -> TrainConfig:
    """The toy model's face encoder in small batches, with everything that a checkpoint can hold."""
    config = toy_face.get_config()
    config.steps, config.batch_size, config.checkpoint_every = 100_000, 4, 3
    config.optim = OptimConfig(learning_rate=1e-3, warmup_steps=5)
    config.ema_decay, config.export = 0.9, ""
    config.mesh.data = 1
    return config


class Recorder(Checkpoints):
    """Keeps a digest of every step instead of the step."""

    digests: dict[int, str] = {}  # noqa: RUF012

    def save(self, step, items):
        self.digests[step] = digest(items)


def digest(items) -> str:
    """Identifies the bits of all arrays of a checkpoint."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(items):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def steps_in(workdir: Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def is_saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def one_life(kind: str, workdir: Path, folder: Path, rng: np.random.Generator) -> int:
    """Starts the run, ends it in the way of this kind, and returns its exit code."""
    command = [sys.executable, "-m", "tora2_jax.train", f"--config={Path(__file__).resolve()}"]
    command.append(f"--workdir={workdir}")
    before = max(steps_in(workdir), default=0)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "PYTHONPATH": str(ROOT)}
    environment = cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"} | os.environ
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    if kind == "starting":
        time.sleep(rng.uniform(0, 10))
    else:
        while max(steps_in(workdir), default=0) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
    while kind == "saving" and not is_saving(workdir) and process.poll() is None:
        time.sleep(0.001)
    if kind.startswith("stop"):
        process.send_signal(signal.SIGTERM)
        if kind == "stop":
            return process.wait()
        time.sleep(rng.uniform(0, 0.5))
    time.sleep(rng.uniform(0, 0.02))
    process.kill()
    return process.wait()


def initial_items():
    """What a checkpoint holds: structure, shapes and types."""
    config = get_config()
    _, state = train_state.init_state(config, train_state.find_stage(config))
    return {name: getattr(state, name) for name in ITEMS}


def last_checkpoint(workdir: Path, target) -> tuple[int, str]:
    """Step and digest of the last checkpoint that is whole."""
    saved = Checkpoints(workdir / "checkpoints")
    try:
        step = saved.latest()
        return step, digest(saved.restore(step, target))
    finally:
        saved.close()


def check(code: int, kind: str, folder: Path) -> None:
    """Ends the script if a run has not ended in the way of its kind."""
    if code != (75 if kind == "stop" else -signal.SIGKILL):
        sys.exit(f"{kind}: unexpected exit code {code}; see {folder / 'output.txt'}")


def kill_repeatedly(kills: int, folder: Path, rng: np.random.Generator) -> dict[int, str]:
    """Digests of the checkpoints that were the last when a run was killed, by step."""
    workdir, found = folder / "killed", {}
    check(one_life("training", workdir, folder, rng), "training", folder)  # compiles
    target = initial_items()
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        code = one_life(kind, workdir, folder, rng)
        check(code, kind, folder)
        step, own = last_checkpoint(workdir, target)
        print(f"kill {number + 1}: {kind}, exit code {code}, last checkpoint {step}", flush=True)
        found[step] = own
    return found


def uninterrupted(steps: int, folder: Path) -> dict[int, str]:
    """Digests of every step of a run that nobody kills."""
    config = get_config()
    config.steps, config.checkpoint_every = steps, 1
    loop.Checkpoints = Recorder
    loop.train(config, folder / "uninterrupted")
    return Recorder.digests


def main() -> int:
    """Returns 0 if every checkpoint is bit-equal."""
    parser = argparse.ArgumentParser(description="Kill a training run again and again.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--folder", type=local_path, default=Path("workdirs/kill_test"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    if folder.exists():
        parser.error(f"--folder: {folder} exists")
    folder.mkdir(parents=True)
    os.chdir(ROOT)
    start, found = time.monotonic(), {}
    found = kill_repeatedly(options.kills, folder, np.random.default_rng(options.seed))
    whole = uninterrupted(max(found), folder)
    different = [step for step, own in sorted(found.items()) if whole[step] != own]
    print(
        f"{options.kills} kills, {max(found)} steps, {len(found)} checkpoints compared, "
        f"{len(different)} different {different or ''}in {(time.monotonic() - start) / 60:.1f} min"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
