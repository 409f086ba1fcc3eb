"""The settings of the toy world."""

from dataclasses import dataclass


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
