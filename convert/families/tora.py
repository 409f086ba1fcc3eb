"""`python -m convert tora`: Tora as people hold it -> a folder to sample from."""

from pathlib import Path

from convert.checkpoints import conversion, sources


def convert_tora(
    source: str | Path, destination: str | Path, base: str | Path | None = None
) -> list[str]:
    """Converts Tora's transformer and motion path, and makes the result self-contained.

    Weights go through array by array, each in the dtype it came with. The destination appears when
    everything is written.

    Args:
        source: A folder of the diffusers version, or its transformer alone; the SAT version's
            `mp_rank_00_model_states.pt`, or the folder of its run; or what ComfyUI has of it, a
            folder with `fuser/` and `traj_extractor/`. Only local files are read.
        destination: Must not exist.
        base: A folder that `convert cogvideox` made. It gives what the source lacks; only a whole
            folder of the diffusers version lacks nothing.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about source and base that is missing, damaged or of
            another model.
        FolderError: the destination cannot be written.
    """
    base = None if base is None else Path(base)
    wanted = sources.check(Path(source), tora=True, base=base)
    conversion.write(destination, wanted)
    return wanted.notes
