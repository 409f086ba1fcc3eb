"""Files that stand where another was expected: what each is, told from its first bytes."""

from pathlib import Path

_SEEN = 512  # bytes that are looked at
_AGAIN = "download the file itself"
_LFS = b"version https://git-lfs.github.com/spec/"
_GGUF = b"GGUF"
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def why_unusable(path: str | Path) -> str | None:
    """What a file is instead of what its name says, and what to do; None if nothing is known.

    Args:
        path: An existing file; only its first bytes are read.

    Returns:
        The rest of a sentence that begins with the file's name.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(_SEEN)
    except OSError:  # whoever reads it next says why it cannot be opened
        return None
    if not start:
        return f"is empty; {_AGAIN}"
    if start.startswith(_LFS):
        return (
            "is a Git LFS pointer, a few lines of text that stand for the file; run `git lfs "
            f"install` and `git lfs pull` in its repository, or {_AGAIN}"
        )
    if start.startswith(_GGUF):
        return (
            "is a GGUF file: its weights are quantized and are not read here; take the same "
            "model's safetensors in bfloat16 or float16"
        )
    if start.lstrip().lower().startswith(_PAGES):
        return f"is a web page, perhaps of a login or of an error; {_AGAIN}"
    return None
