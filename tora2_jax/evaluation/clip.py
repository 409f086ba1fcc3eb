"""CLIP as a measure: a converted folder, and pictures and captions as it takes them."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, Int, UInt8
from PIL import Image
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from tora2_jax.config import from_dict
from tora2_jax.config.encoders import CLIPConfig
from tora2_jax.errors import CheckpointError
from tora2_jax.models.encoders.clip import CLIP
from tora2_jax.models.layers.basic import shape_rngs
from tora2_jax.system.unusable_file import why_unusable
from tora2_jax.weights import checkpoint


def load_clip(
    directory: str | Path, dtype: DTypeLike = jnp.float32
) -> tuple[CLIP, PreTrainedTokenizerBase]:
    """The network and the tokenizer of a folder that `python -m convert clip` made.

    Args:
        directory: Holds `clip/` and `tokenizer/`.
        dtype: In which the network computes.

    Raises:
        CheckpointError: something is missing, damaged or does not fit; the message says what.
    """
    directory = Path(directory)
    place = checkpoint.component_path(directory, "clip")
    if place is None:
        raise CheckpointError(f"{directory} holds no CLIP; `python -m convert clip` makes one")
    try:
        config = from_dict(CLIPConfig, checkpoint.component_metadata(place)["model"]["clip"])
        tokenizer = load_clip_tokenizer(directory / "tokenizer")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{directory}: {error}; convert it again") from error
    model = nnx.eval_shape(lambda: CLIP(config, rngs=shape_rngs(), dtype=dtype))
    checkpoint.restore_frozen(model, place, dtype=dtype)
    return model, tokenizer


def load_clip_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer, from a local folder.

    Raises:
        FileNotFoundError: there is no `tokenizer.json`, and no `vocab.json` with `merges.txt`.
        ValueError: a file is damaged, or it is no tokenizer of CLIP.
    """
    directory = Path(directory)
    pieces = (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file()
    if not pieces and not (directory / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{directory} holds no tokenizer of CLIP: it needs tokenizer.json, or vocab.json and "
            "merges.txt"
        )
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        file = directory / name
        if file.is_file() and (reason := why_unusable(file)):
            raise ValueError(f"{file} {reason}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
        ids = tokenizer("a").input_ids
    except Exception as error:  # the parsers raise bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {directory} cannot be read: {error}") from error
    if len(ids) < 3 or (ids[0], ids[-1]) != (tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise ValueError(
            f"the tokenizer in {directory} is not CLIP's: a caption must start with "
            f"{tokenizer.bos_token} and end with {tokenizer.eos_token}"
        )
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], max_length: int = 77
) -> Int[np.ndarray, "b l"]:
    """Captions as CLIP reads them: start, words, end, padding; cut before the end.

    Args:
        tokenizer: From `load_clip`.
        captions: At least one.
        max_length: l.
    """
    encoded = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=max_length
    )
    return np.asarray(encoded.input_ids, np.int32)


def preprocess(
    picture: Image.Image | UInt8[np.ndarray, "height width 3"], side: int = 224
) -> Float[np.ndarray, "side side 3"]:
    """A picture as CLIP sees it: shorter side to `side` (bicubic, 8 bits), center cut out.

    The network itself subtracts the mean and divides by the deviation.

    Args:
        picture: Any mode of PIL's; what is transparent becomes white, as in transformers.
        side: Pixels, `config.vision.image_size`.

    Returns:
        float32 in [0, 1].
    """
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    picture = picture.convert("RGB")
    shorter, longer = sorted(picture.size)
    scaled = int(side * longer / shorter)
    size = (side, scaled) if picture.width <= picture.height else (scaled, side)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    return np.asarray(picture, np.float32) / 255
