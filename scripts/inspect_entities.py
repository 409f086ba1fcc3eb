"""See why an entity is ignored: one picture per entity of what the model makes of it.

python scripts/inspect_entities.py request.json --checkpoint DIR --output out/inspection
python scripts/inspect_entities.py a.json b.json --checkpoint DIR --json    and the numbers
"""

import argparse
import sys
from pathlib import Path

from tora2_jax.inspection import command
from tora2_jax.sampling.command import SamplingError
from tora2_jax.system.addresses import local_path
from tora2_jax.system.hub import weights_path
from tora2_jax.system.stop import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Parse, inspect, print; exit code 2 and one message for anything that the user can mend."""
    parser = argparse.ArgumentParser(description="Draw what the model makes of every entity.")
    parser.add_argument(
        "requests",
        type=local_path,
        nargs="+",
        metavar="REQUEST",
        help="request files (JSON), any sizes",
    )
    parser.add_argument(
        "--checkpoint", type=weights_path, required=True, help="folder with the model"
    )
    parser.add_argument(
        "--output", type=local_path, default=Path("out/inspection"), help="folder for the pictures"
    )
    parser.add_argument("--json", action="store_true", help="write the numbers too (REQUEST.json)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that is looked at")
    parser.add_argument(
        "--steps",
        type=int,
        default=command.Options._field_defaults["steps"],
        help="DDIM steps, of which up to five are looked at (more: slower, truer)",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument(
        "--face-models",
        type=local_path,
        help="folder with insightface's antelopev2 or buffalo_l, to find faces in references",
    )
    try:
        command.run(command.Options(**vars(parser.parse_args(arguments))))
    except SamplingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
