"""Names of videos, as they are compared and as files are called after them."""

import hashlib
import re
import unicodedata

_NAME_BYTES = 90  # of a readable part; file systems take 255


def composed(name: str) -> str:
    """A name as it is compared: in Unicode's composed form; bytes that are no text as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def key_of(name: str) -> str:
    """A name for files that belong to a video: readable, safe, and of no other video."""
    stem = re.sub(r"\.[^./]*$", "", composed(name))
    safe = re.sub(r"[^\w.-]+", "-", stem).strip("-.").encode()[:_NAME_BYTES]
    readable = safe.decode("utf-8", "ignore") or "video"
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{readable}-{digest[:10]}"
