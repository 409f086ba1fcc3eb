"""Make videos from request files.

python scripts/sample.py --checkpoint DIR --request request.json --output out.mp4
python scripts/sample.py --checkpoint DIR --request a.json b.json --output out.mp4    out_0.mp4 ...
"""

import argparse
import sys

from tora2_jax.sampling import command
from tora2_jax.sampling.settings import DEFAULTS
from tora2_jax.system.addresses import named_path
from tora2_jax.system.stop import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Parse, sample, print; exit code 2 and one message for anything that the user can mend."""
    try:
        written = command.run(command.Options(**vars(_parser().parse_args(arguments))))
    except command.SamplingError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make videos from request files.")
    parser.set_defaults(**command.Options._field_defaults)
    parser.add_argument(
        "--checkpoint", type=named_path, required=True, help="folder with the model"
    )
    parser.add_argument(
        "--request",
        type=named_path,
        nargs="+",
        required=True,
        help="request files (JSON); several of the same size are sampled as one batch",
    )
    parser.add_argument(
        "--output",
        type=named_path,
        required=True,
        help="video to write (.mp4); _0, _1, ... for several",
    )
    _add_sampling(parser)
    _add_inputs(parser)
    parser.add_argument("--save-latents", type=named_path, help=".npz, [b, t, c, h, w]")
    parser.add_argument(
        "--save-frames", type=named_path, help=".npy, [b, f, height, width, 3] in [0, 1]"
    )
    parser.add_argument(
        "--overlay", action="store_true", help="draw paths and references; default: not"
    )
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    given = "default: %(default)s"
    # Of the sampler's settings: what the checkpoint's generation_config.json says goes first.
    own = {name: f"default: the checkpoint's, or {one}" for name, one in DEFAULTS._asdict().items()}
    parser.add_argument("--steps", type=int, help=f"denoising steps; {own['steps']}")
    parser.add_argument("--guidance", type=float, help=f"strength of the prompt; {own['guidance']}")
    parser.add_argument(
        "--dynamic-guidance",
        action=argparse.BooleanOptionalAction,
        help=f"CogVideoX's guidance, which changes from step to step; {own['dynamic_guidance']}",
    )
    parser.add_argument(
        "--reference-guidance",
        type=float,
        help=f"more than 1 amplifies references; {own['reference_guidance']}",
    )
    parser.add_argument(
        "--trajectory-guidance",
        type=float,
        help=f"more than 1 amplifies paths; {own['trajectory_guidance']}",
    )
    parser.add_argument("--scheduler", choices=("dpm", "ddim"), help="default: the checkpoint's")
    parser.add_argument("--seed", type=int, help=f"request i has the seed SEED + i; {given}")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help=f"of the computation; {given}"
    )
    parser.add_argument(
        "--vae-memory",
        choices=("whole", "chunked", "tiled"),
        help=f"decode all at once, in chunks of frames, or also in tiles (other numbers); {given}",
    )
    parser.add_argument(
        "--mesh",
        help="share one video among devices, as sequence=4,tensor=2 (docs/sharding.md); default: "
        "one device",
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--face-models",
        type=named_path,
        help="folder with insightface's antelopev2 or buffalo_l, to find faces in references",
    )
    parser.add_argument(
        "--fit",
        choices=("stretch", "crop", "pad"),
        help="how a first frame of another shape becomes one; default: as the request says",
    )
    parser.add_argument(
        "--request-paths",
        choices=("anything", "beside-the-request"),
        default="anything",
        help="which files a request may name; the latter for requests of strangers",
    )
    parser.add_argument("--init-latents", type=named_path, help=".npy or .npz, [b, t, c, h, w]")


if __name__ == "__main__":
    sys.exit(exit_code(main))
