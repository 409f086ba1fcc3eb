"""What people hold of CogVideoX and Tora, and the way that each form of it takes."""

from pathlib import Path

from convert.checkpoints import conversion, sat_checkpoint
from convert.engine.rules import ConversionError, listing
from convert.families import tora_adapter, tora_sat
from convert.lora import files as lora_files

PARTS = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")


def check(source: Path, tora: bool, base: Path | None) -> conversion.Plan:
    """Finds out what a source is and checks it as a whole.

    Args:
        source: A folder of diffusers, whole or in part; a transformer alone, as a file, a folder
            or the folder of a run; SAT's checkpoint; or what ComfyUI has of Tora.
        tora: Whether it is to be Tora or CogVideoX.
        base: A folder that `convert cogvideox` made and that gives what the source lacks.

    Raises:
        ConversionError: lists everything about source and base that is missing, damaged or of
            another model.
    """
    if not source.exists():
        raise ConversionError(f"{source}: there is no such file or folder")
    if tora and tora_adapter.is_adapter(source):
        return tora_adapter.check(source, base)
    problems: list[str] = []
    parts = find_parts(source)
    files = conversion.open_parts(parts, problems)
    transformer = files.get("transformer")
    if transformer is not None and lora_files.is_lora(transformer.specs):
        raise listing(source, [lora_files.MERGE])
    if transformer is not None and tora_sat.is_sat(transformer.specs):
        return sat_checkpoint.check(source, transformer, tora, base)
    return conversion.check_parts(source, parts, files, problems, tora, base)


def find_parts(source: Path) -> dict[str, Path]:
    """Where the parts of a folder of diffusers are; else the source is a transformer alone."""
    found = {name: source / name for name in PARTS if (source / name).is_dir()}
    if not found:
        return {"transformer": source}
    return found | {"transformer": source / "transformer"}
