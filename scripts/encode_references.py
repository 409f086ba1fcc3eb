"""Write what the encoders say about the references of a request as feature files.

python scripts/encode_references.py --checkpoint DIR --request request.json --output FOLDER
"""

import argparse
import json
import sys

from tora2_jax.conditioning import feature_writer
from tora2_jax.errors import CheckpointError
from tora2_jax.references.faces import FaceModelError, InsightFaceDetector
from tora2_jax.references.feature_files import FORMATS
from tora2_jax.request import RequestError, load_request
from tora2_jax.system import feedback
from tora2_jax.system.addresses import local_path
from tora2_jax.system.compile_cache import keep_compiled_programs
from tora2_jax.system.hub import weights_path
from tora2_jax.system.stop import exit_code
from tora2_jax.weights import bundle


def main(arguments: list[str] | None = None) -> int:
    """Parse, encode, write, print; exit code 2 and one message for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=weights_path, required=True, help="folder with the model"
    )
    parser.add_argument("--request", type=local_path, required=True, help="a request file (JSON)")
    parser.add_argument("--output", type=local_path, required=True, help="folder for the files")
    parser.add_argument("--format", choices=[name[1:] for name in FORMATS], default="npz")
    parser.add_argument(
        "--face-models",
        type=local_path,
        help="folder with insightface's antelopev2 or buffalo_l, to find faces in references",
    )
    options = parser.parse_args(arguments)
    try:
        _write(options)
    except (RequestError, CheckpointError, FaceModelError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _write(options: argparse.Namespace) -> None:
    """Everything after parsing."""
    keep_compiled_programs()
    detector = None if options.face_models is None else InsightFaceDetector(options.face_models)
    tokenizer = bundle.load_bundle_tokenizer(options.checkpoint)
    with feedback.working("reading the checkpoint"):
        model, networks = bundle.load_reference_encoders(options.checkpoint)
    request = load_request(options.request, model, tokenizer)
    with feedback.working("encoding"):
        references = feature_writer.encode_request(networks, model, tokenizer, request, detector)
    names = feature_writer.write_features(options.output, references, f".{options.format}")
    for entity, own in zip(request.entities, names, strict=True):
        if own:
            print(f'"word": "{entity.word}", "features": {json.dumps(own)}')
    print(f"wrote {sum(map(len, names))} files to {options.output}; name them in a request there")


if __name__ == "__main__":
    sys.exit(exit_code(main))
