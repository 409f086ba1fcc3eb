"""`python -m convert cogvideox`: a CogVideoX folder of diffusers -> a folder to sample from."""

from pathlib import Path

from convert import conversion
from convert.engine import ConversionError


def convert_folder(source: str | Path, destination: str | Path) -> None:
    """Converts transformer, VAE, T5, tokenizer and scheduler settings.

    Weights go through array by array, each in the dtype it came with. The destination appears when
    everything is written.

    Args:
        source: As people download it; only local files are read.
        destination: Must not exist.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            model.
        FolderError: the destination cannot be written.
    """
    source = Path(source)
    if not source.is_dir():
        raise ConversionError(f"{source} is not a folder")
    conversion.write(destination, conversion.check_folder(source))
