"""`python -m tora2_jax.train`; see `train.loop`."""

import sys

from tora2_jax.train.loop import run

if __name__ == "__main__":
    run(sys.argv)
