"""The settings of curation. Plain data, so that every field can be set by a flag."""

from dataclasses import dataclass


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
