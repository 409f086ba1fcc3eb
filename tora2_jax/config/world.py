"""The settings of the toy world, and of stages that train on nothing else."""

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, kw_only=True)
class WorldConfig:
    """The toy world that training examples are rendered from."""

    seed: int = 0
    height: int = 96
    width: int = 96
    frames: int = 17
    fps: int = 8
    min_entities: int = 1
    max_entities: int = 3
    references: int = 2  # images per entity
    trajectory_probability: float = 1.0
    # How things look and move: `bold` has flat two-tone sprites with a thick outline that fill more
    # of the frame, plain backgrounds and slower paths.
    style: Literal["patterned", "bold"] = "patterned"
    rich_captions: float = 0.0  # share of captions that also tell looks and places
    repeated_words: float = 0.0  # share of clips of several entities of which two have one word
    spread: float = 1.0  # distances of paths from the middle of the frame, in those of the world


@dataclass(slots=True, kw_only=True)
class CropConfig:
    """What stage `vae` cuts out of the clips of the toy world."""

    frames: int = 9
    size: int = 48  # pixels


@dataclass(slots=True, kw_only=True)
class RecognitionConfig:
    """How the toy world's recognition networks learn."""

    # Of the loss by which tokens draw what they stand for (`stages/local_appearance.py`); 0: none.
    local_weight: float = 0.0
