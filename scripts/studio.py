"""A page in the browser: draw paths, drop reference images, watch the video.

python scripts/studio.py                      with the shipped toy checkpoint, on this machine only
python scripts/studio.py --checkpoint DIR
"""

import argparse
import sys
from pathlib import Path

from tora2_jax.studio import command
from tora2_jax.system.addresses import named_path
from tora2_jax.system.stop import exit_code

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Parse, serve; exit code 2 and one message for anything that the user can mend."""
    try:
        command.run(command.Options(**vars(_parser().parse_args(arguments))))
    except command.StudioError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw paths, drop references, watch the video.")
    parser.set_defaults(**command.Options._field_defaults)
    given = "default: %(default)s"
    parser.add_argument(
        "--checkpoint",
        type=named_path,
        default=ROOT / "checkpoints" / "toy",
        help="folder with the model, or its name on the hub; default: the shipped toy",
    )
    parser.add_argument(
        "--request",
        type=named_path,
        default=ROOT / "examples" / "request.json",
        help="request that the page begins with, if the model can make it; default: the example",
    )
    parser.add_argument(
        "--host", help=f"0.0.0.0 lets other machines in, without a password; {given}"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        help=f"open the page in a browser; {given}",
    )
    parser.add_argument("--steps", type=int, help="to begin with; default: the checkpoint's")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help=f"of the computation; {given}"
    )
    parser.add_argument(
        "--face-models",
        type=named_path,
        help="folder with insightface's antelopev2 or buffalo_l, to find faces in references",
    )
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
