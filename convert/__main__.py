"""PyTorch weights to ours and back.

python -m convert cogvideox --src DIFFUSERS_DIR --dst DIR    a CogVideoX download -> a checkpoint
python -m convert tora --src DIFFUSERS_DIR|SAT_PT --dst DIR [--base DIR]
                                                             a Tora download -> a checkpoint
python -m convert lora --src LORA --base DIR --dst DIR
                                                             a LoRA merged into a checkpoint
python -m convert dinov2|clip|t5 --src FILE|DIR --dst DIR     a Hugging Face encoder -> its weights
python -m convert arcface --src FILE --dst DIR               insightface's recognition network
python -m convert reid --src FILE --dst DIR [--size 256x128] [--last-stride 1] ...
                                                             a ResNet for objects -> its weights
python -m convert export --src DIR --dst DIFFUSERS_DIR       a checkpoint -> what diffusers loads
python -m convert export --src DIR --base DIR --dst LORA_DIR what it differs by -> a LoRA
python -m convert bundle --config configs/C.py|RUN/config.json --dst DIR
                                                             several checkpoints -> one
"""

import argparse
import functools
import importlib
import importlib.util
import math
import sys
from pathlib import Path

from convert.engine.folders import FolderError
from convert.engine.rules import ConversionError
from tora2_jax.config import stored
from tora2_jax.config.train import TrainConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.system import feedback
from tora2_jax.system.addresses import local_path
from tora2_jax.system.hub import weights_path
from tora2_jax.system.stop import exit_code

# Encoders by command: the module whose `convert_encoder(source, destination)` does it and returns
# what the user should know, and what SRC is.
_ENCODERS = {
    "dinov2": ("convert.families.dinov2", "folder of a DINOv2 model, as transformers saves it"),
    "clip": (
        "convert.families.clip",
        "folder of a CLIP model with both towers, as transformers saves it",
    ),
    "t5": ("convert.families.t5", "folder of a T5 v1.1 model or encoder, as transformers saves it"),
    "arcface": (
        "convert.families.arcface",
        "ONNX file of an insightface package (glintr100.onnx), or weights of arcface_torch "
        "(backbone.pth, .safetensors)",
    ),
    "reid": (
        "convert.families.object_encoder",
        "weights of a ResNet by torchvision, torchreid, fast-reid or reid-strong-baseline "
        "(.pth, .safetensors)",
    ),
}
# The other commands: what SRC is.
_SOURCES = {
    "cogvideox": "folder of a CogVideoX model, as diffusers saves it; or, with --base, a "
    "transformer alone: a file, a folder, the folder of a run, or SAT's mp_rank_00_model_states.pt",
    "tora": "folder of Tora's diffusers version; or, with --base, mp_rank_00_model_states.pt "
    "(SAT), the folder of a run, or a folder with ComfyUI's fuser/ and traj_extractor/",
    "lora": "LoRA of a CogVideoX transformer, a file or its folder: by PEFT, diffusers or ComfyUI",
    "export": "converted folder or bundle",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; exit code 2 and one message for anything that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        with feedback.working("converting"):
            options.run(options)
    except (ConversionError, FolderError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {options.dst}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    runs = {"cogvideox": _cogvideox, "tora": _tora, "lora": _lora, "export": _export}
    for name, run in runs.items():
        command = commands.add_parser(name)
        command.add_argument("--src", type=weights_path, required=True, help=_SOURCES[name])
        command.set_defaults(run=run)
    for name, (module, source) in _ENCODERS.items():
        command = commands.add_parser(name)
        command.add_argument("--src", type=weights_path, required=True, help=source)
        command.set_defaults(run=functools.partial(_encoder, module))
    _add_reid_options(commands.choices["reid"])
    for name in ("cogvideox", "tora"):
        commands.choices[name].add_argument(
            "--base",
            type=weights_path,
            help="folder that the cogvideox command made: has the VAE, text encoder, tokenizer and "
            "scheduler that SRC lacks; a transformer alone and SAT checkpoints need one",
        )
    _add_lora_options(commands.choices["lora"], commands.choices["export"])
    commands.choices["export"].add_argument(
        "--accept-differences",
        action="store_true",
        help="also export settings and weights that diffusers cannot hold; they are named, and "
        "kept in a folder tora2/ of DST",
    )
    command = commands.add_parser("bundle")
    command.add_argument(
        "--config",
        required=True,
        help="file of configs/, or FILE:ARGUMENT as in training, which is Python and is run; or "
        "config.json of a run, which has the flags that it was started with and is only read",
    )
    command.set_defaults(run=_bundle)
    for command in commands.choices.values():
        command.add_argument("--dst", type=local_path, required=True, help="folder to make")
    return parser


def _add_lora_options(merge: argparse.ArgumentParser, export: argparse.ArgumentParser) -> None:
    merge.add_argument(
        "--base",
        type=weights_path,
        required=True,
        help="checkpoint of the model that SRC was trained on",
    )
    merge.add_argument(
        "--scale",
        type=_finite,
        default=1.0,
        metavar="NUMBER",
        help="strength of the LoRA, on top of its alpha by its rank (default: 1)",
    )
    export.add_argument(
        "--base",
        type=weights_path,
        help="checkpoint of the same model: DST is a LoRA, of what SRC's transformer differs by",
    )
    export.add_argument(
        "--rank",
        type=_positive,
        help="with --base: the largest rank that the LoRA may have (default: 64)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def _add_reid_options(command: argparse.ArgumentParser) -> None:
    """What no tensor tells; without them the program's defaults are taken, and told."""
    command.add_argument(
        "--size", type=_size, metavar="HEIGHTxWIDTH", help="pixels of the images, such as 256x128"
    )
    command.add_argument("--last-stride", type=int, choices=(1, 2), help="of the last stage")
    command.add_argument(
        "--pooling",
        choices=("mean", "generalized_mean"),
        help="of the last map to the vector; generalized_mean is GeM",
    )
    command.add_argument(
        "--stem-pool",
        choices=("padded", "unpadded"),
        help="max pooling behind the first convolution; unpadded as in fast-reid",
    )


def _size(text: str) -> tuple[int, int]:
    """Height and width of "256x128", or of "224"."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= 32 for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no HEIGHTxWIDTH in pixels of at least 32, such as 256x128"
        )
    return int(sides[0]), int(sides[-1])


# The networks are imported only by the command that needs them: --help answers at once.


def _cogvideox(options: argparse.Namespace) -> None:
    from convert.families.cogvideox import convert_folder

    _tell(convert_folder(options.src, options.dst, options.base))


def _tora(options: argparse.Namespace) -> None:
    from convert.families.tora import convert_tora

    _tell(convert_tora(options.src, options.dst, options.base))


def _lora(options: argparse.Namespace) -> None:
    from convert.lora.merge import merge_lora

    _tell(merge_lora(options.src, options.dst, options.base, options.scale))


def _export(options: argparse.Namespace) -> None:
    if options.base is not None:
        from convert.lora.export import RANK, export_difference

        rank, accept = options.rank or RANK, options.accept_differences
        _tell(export_difference(options.src, options.dst, options.base, rank, accept))
        return
    if options.rank is not None:
        raise ConversionError("--rank is of a LoRA: name what SRC differs from with --base")
    from convert.checkpoints.export import export_folder

    _tell(export_folder(options.src, options.dst, accept_differences=options.accept_differences))


def _encoder(module: str, options: argparse.Namespace) -> None:
    given = {name: getattr(options, name, None) for name in ("last_stride", "pooling", "stem_pool")}
    if size := getattr(options, "size", None):
        given["image_size"], given["image_width"] = size
    given = {name: value for name, value in given.items() if value is not None}
    convert = importlib.import_module(module).convert_encoder
    _tell(convert(options.src, options.dst, **given))


def _tell(notes: list[str]) -> None:
    for note in notes:
        print(note)


def _bundle(options: argparse.Namespace) -> None:
    from convert.checkpoints.bundle import make_bundle

    make_bundle(_config(options.config), options.dst)


def _config(given: str) -> TrainConfig:
    """The config of a run, or what `get_config()` of a file of configs/ returns.

    What follows a colon is the argument of `get_config`.
    """
    if Path(given).suffix == ".json":
        return _run_config(Path(given))
    name, _, argument = given.partition(":")
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None:
        raise ConversionError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:  # whatever a file of the user's raises
        raise ConversionError(f"--config: {path} cannot be loaded: {error!r}") from error
    if not isinstance(config, TrainConfig):
        raise ConversionError(f"--config: get_config() of {path} returns no TrainConfig")
    return config


def _run_config(path: Path) -> TrainConfig:
    try:
        return stored.read_run(path)
    except (OSError, ValueError) as error:
        raise ConversionError(f"--config: {path} is not the config of a run: {error}") from error


if __name__ == "__main__":
    sys.exit(exit_code(main))
