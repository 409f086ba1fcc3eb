"""`python -m convert cogvideox`: CogVideoX as people hold it -> a folder to sample from."""

from pathlib import Path

from convert.checkpoints import conversion, sources


def convert_folder(
    source: str | Path, destination: str | Path, base: str | Path | None = None
) -> list[str]:
    """Converts transformer, VAE, T5, tokenizer and scheduler settings.

    Weights go through array by array, each in the dtype it came with. The destination appears when
    everything is written.

    Args:
        source: A folder as diffusers saves it; or a transformer alone (a file, a folder, the folder
            of a run), by diffusers' names or SAT's. Only local files are read.
        destination: Must not exist.
        base: A folder that this command made, of a model of the same kind. It gives what the source
            lacks.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about source and base that is missing, damaged or of
            another model.
        FolderError: the destination cannot be written.
    """
    base = None if base is None else Path(base)
    wanted = sources.check(Path(source), tora=False, base=base)
    conversion.write(destination, wanted)
    return wanted.notes
