"""Render the reference images of `examples/` from identities that no training stage has seen.

python scripts/make_examples.py --output examples
"""

import argparse

import numpy as np

from tora2_jax.media import video
from tora2_jax.system.addresses import local_path
from tora2_jax.world import clips as world

IDENTITIES = {"man": (990_001, 3), "kite": (990_001, 5)}


def main() -> None:
    """One upright reference per entity of the example request."""
    parser = argparse.ArgumentParser(description="Render the reference images of the examples.")
    parser.add_argument("--output", type=local_path, required=True, help="folder to write")
    output = parser.parse_args().output
    for word, seed in IDENTITIES.items():
        entity = world.sample_entity(seed, word)
        image = world.render_reference(entity, np.random.default_rng(seed))
        video.write_image(output / f"{word}.png", image)


if __name__ == "__main__":
    main()
