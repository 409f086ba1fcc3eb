"""What of a request a model takes otherwise than a person may expect: one line each, no errors."""

from tora2_jax.config.model import ModelConfig
from tora2_jax.errors import printable
from tora2_jax.media.image_file import load_image
from tora2_jax.request.fields import short
from tora2_jax.request.load import Request, Sizes, sizes_of, with_defaults
from tora2_jax.text import kept_text, letters_only, unknown_words, whole_words

_LISTED = 5  # words that a line names
_VOCABULARY = 60  # words of a tokenizer that a line may list
_SAME_ASPECT = 0.02  # a change of shape that nobody sees


def request_notes(request: Request, model: ModelConfig, tokenizer) -> list[str]:
    """One line for all that is cut off, not understood, stretched or out of what was trained.

    Args:
        request: checked.
        model: which makes the video.
        tokenizer: of the model.
    """
    request = with_defaults(request, model)
    notes = text_notes("prompt", request.prompt, model, tokenizer)
    if request.negative_prompt is not None:
        notes += text_notes("negative_prompt", request.negative_prompt, model, tokenizer)
    notes += _size_notes(request, model)
    notes += _picture_notes(request, sizes_of(request, model))
    return [printable(note) for note in notes]


def text_notes(field: str, text: str, model: ModelConfig, tokenizer) -> list[str]:
    """What of a prompt has no effect, or hardly any."""
    notes = []
    kept, tokens = kept_text(tokenizer, text, model.transformer.max_text_length)
    if kept < len(text):
        last = " ".join(text[:kept].split()[-_LISTED:])[-60:]
        notes.append(
            f"{field}: cut off after {model.transformer.max_text_length - 1} of its {tokens} "
            f'tokens; what follows "{last}" has no effect'
        )
    if unknown := unknown_words(tokenizer, text):
        notes.append(
            f"{field}: the tokenizer does not know {_quoted(unknown)}; to the model all of it is "
            "one and the same unknown token (published models read English)"
        )
    if spelled := letters_only(tokenizer, text):
        known = whole_words(tokenizer)
        listed = f"; its words are {', '.join(known)}" if len(known) <= _VOCABULARY else ""
        notes.append(
            f"{field}: the tokenizer spells {_quoted(spelled)} letter by letter, so the model "
            f"hardly knows what that means{listed}"
        )
    return notes


def _quoted(words: list[str]) -> str:
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return ", ".join(f'"{short(word, 20)}"' for word in words[:_LISTED]) + more


def _size_notes(request: Request, model: ModelConfig) -> list[str]:
    names = ("frames", "height", "width")
    asked, own = ([getattr(source, name) for name in names] for source in (request, model))
    changed = [name for name, a, b in zip(names, asked, own, strict=True) if a != b]
    if not changed:
        return []
    sizes = ["{} frames of {} x {}".format(*size) for size in (asked, own)]
    return [
        f"{', '.join(changed)}: {model.name} was made for {sizes[1]}; {sizes[0]} may come out worse"
    ]


def _picture_notes(request: Request, sizes: Sizes) -> list[str]:
    """Says how a first frame of another shape than the video's becomes one."""
    if request.image is None:
        return []
    height, width = load_image(request.image).shape[:2]
    change = (sizes.width / sizes.height) / (width / height)
    if abs(change - 1) <= _SAME_ASPECT:
        return []
    start = f"image: {width} x {height} pixels for a video of {sizes.width} x {sizes.height}: "
    if request.fit == "stretch":
        side, times = ("width", change) if change > 1 else ("height", 1 / change)
        done = f"stretched to {times:.2g} times its {side}; --fit crop or pad keep its shape"
    elif request.fit == "crop":
        lost = 1 - min(change, 1 / change)
        done = f"{lost:.0%} of it is cropped at {'top and bottom' if change > 1 else 'the sides'}"
    else:
        done = f"padded in black at {'the sides' if change > 1 else 'top and bottom'}"
    return [start + done]
