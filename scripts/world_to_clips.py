"""Write clips of the toy world as a folder of annotated clips (docs/entity_clips.md).

python scripts/world_to_clips.py --output DIR --clips 8 --frames 33
"""

import argparse
import sys

from tqdm import tqdm

from tora2_jax.config.world import WorldConfig
from tora2_jax.data.record_files import write_record
from tora2_jax.system.addresses import local_path
from tora2_jax.system.stop import exit_code
from tora2_jax.world.clips import render_clip


def main(arguments: list[str] | None = None) -> int:
    """Parse, render, write; exit code 2 and one message for anything that the user can mend."""
    parser = argparse.ArgumentParser(description="Write toy clips as annotated clips.")
    parser.add_argument("--output", type=local_path, required=True, help="folder; made if needed")
    parser.add_argument("--clips", type=int, default=8, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--frames", type=int, default=33, help="more than a model needs leave some")
    parser.add_argument("--height", type=int, default=96, help="pixels, even")
    parser.add_argument("--width", type=int, default=96, help="pixels, even")
    parser.add_argument("--references", type=int, default=0, help="images per entity of its own")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("clips", "frames", "height", "width")}
    for name, value in sizes.items():
        if value < 1 or (name in ("height", "width") and (value % 2 or value < 32)):
            print(f"--{name}: {value} must be positive (sides: even, 32 or more)", file=sys.stderr)
            return 2
    world = WorldConfig(
        seed=options.seed,
        height=options.height,
        width=options.width,
        frames=options.frames,
        references=options.references,
    )
    try:
        for index in tqdm(range(options.first, options.first + options.clips), disable=None):
            write_record(options.output, render_clip(world, index))
    except (OSError, ValueError) as error:
        print(f"--output: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.clips} clips to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
