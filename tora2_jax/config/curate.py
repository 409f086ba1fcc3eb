"""The settings of curation. Plain data, so that every field can be set by a flag."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True, kw_only=True)
class FilterConfig:
    """Thresholds; None switches a filter off. Defaults are the paper's (section 3.3) where known.

    Attributes:
        seconds: shortest length of a clip (ours).
        lines: fewest pixels of the shorter side.
        text: largest share of the picture that text may cover (ours; the paper: not too much).
        aesthetic: score that must be exceeded.
        flow: score that must be exceeded; ours is `measures.flow_score`.
        zoom: least and most of `CameraMotion.zoom`.
        angle: directions in degrees that the camera may move in.
        subject: whether the caption must name a subject.
        plural: whether a subject in the plural drops a clip.
    """

    seconds: float | None = 2.0
    lines: int | None = 720
    text: float | None = 0.02
    aesthetic: float | None = 5.0
    flow: float | None = 2.0
    zoom: tuple[float, float] | None = (0.4, 0.6)
    angle: tuple[tuple[float, float], ...] | None = ((0, 30), (150, 200), (330, 360))
    subject: bool | None = True
    plural: bool | None = True


@dataclass(slots=True, kw_only=True)
class MaskConfig:
    """Which masks are kept; shares of the picture, or of the mask (ours, the paper has no numbers).

    Attributes:
        smallest: share of the picture.
        largest: share of the picture.
        fragmented: largest share of the mask outside of its largest piece.
    """

    smallest: float = 0.004
    largest: float = 0.6
    fragmented: float = 0.3


@dataclass(slots=True, kw_only=True)
class LanguageModelConfig:
    """A service with the OpenAI-compatible interface.

    Attributes:
        address: up to `/v1`.
        model: its name there.
        key_variable: variable of the environment with its key, if it wants one.
    """

    address: str = "http://localhost:8000/v1"
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    key_variable: str | None = None


@dataclass(slots=True, kw_only=True)
class CurateConfig:
    """How raw videos become annotated clips.

    Attributes:
        filters: thresholds.
        masks: which masks are kept.
        shots: who finds cuts: `transnet`, or `none` (a video is one shot).
        cuts: a table `video,frame` with cuts, which goes first.
        longest: seconds; longer shots are parted evenly.
        captions: `files` (`NAME.txt` beside the video), `table`, or `language_model`.
        caption_table: CSV with the columns `video` and `caption`.
        words: who finds subjects: `spacy` or `language_model`.
        mask_finder: `motion` (what moves; of captions with one subject) or `files`.
        mask_folder: of the masks that another program has made.
        language_model: of captions and words.
        text_finder: `rapidocr`, or `none` (the filter is off).
        seconds_per_video: after which a video is given up.
    """

    filters: FilterConfig = field(default_factory=FilterConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    shots: Literal["transnet", "none"] = "transnet"
    cuts: str | None = None
    longest: float = 10.0
    captions: Literal["files", "table", "language_model"] = "files"
    caption_table: str | None = None
    words: Literal["spacy", "language_model"] = "spacy"
    mask_finder: Literal["motion", "files"] = "motion"
    mask_folder: str | None = None
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    text_finder: Literal["rapidocr", "none"] = "rapidocr"
    seconds_per_video: float = 600.0
