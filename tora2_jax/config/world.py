"""The settings of the toy world, and of stages that train on nothing else."""

from dataclasses import dataclass
from typing import Literal

from tora2_jax.config.rules import not_negative, positive, share


@dataclass(slots=True, kw_only=True)
class WorldConfig:
    """The toy world that training examples are rendered from."""

    seed: int = 0
    height: int = positive(96)
    width: int = positive(96)
    frames: int = positive(17)
    fps: int = positive(8)
    min_entities: int = positive(1)
    max_entities: int = positive(3)
    references: int = not_negative(2)  # images per entity
    trajectory_probability: float = share(1.0)
    # How things look and move: `bold` has flat two-tone sprites with a thick outline that fill more
    # of the frame, plain backgrounds and slower paths.
    style: Literal["patterned", "bold"] = "patterned"
    rich_captions: float = share(0.0)  # share of captions that also tell looks and places
    # Share of clips of several entities of which two have one word.
    repeated_words: float = share(0.0)
    spread: float = 1.0  # distances of paths from the middle of the frame, in those of the world


@dataclass(slots=True, kw_only=True)
class CropConfig:
    """What stage `vae` cuts out of the clips of the toy world."""

    frames: int = positive(9)
    size: int = positive(48)  # pixels


@dataclass(slots=True, kw_only=True)
class RecognitionConfig:
    """How the toy world's recognition networks learn."""

    # Of the loss by which tokens draw what they stand for (`stages/local_appearance.py`); 0: none.
    local_weight: float = not_negative(0.0)
