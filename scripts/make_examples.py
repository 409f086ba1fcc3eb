"""Render the reference images of `examples/` from identities that no training stage has seen."""

from pathlib import Path

import numpy as np

from tora2_jax import video
from tora2_jax.world import clips as world

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
IDENTITIES = {"man": (990_001, 3), "kite": (990_001, 5)}


def main() -> None:
    """One upright reference per entity of the example request."""
    for word, seed in IDENTITIES.items():
        entity = world.sample_entity(seed, word)
        image = world.render_reference(entity, np.random.default_rng(seed))
        video.write_image(EXAMPLES / f"{word}.png", image)


if __name__ == "__main__":
    main()
