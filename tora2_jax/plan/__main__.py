"""`python -m tora2_jax.plan`; see `plan.command`."""

import sys

from tora2_jax.plan.command import run

if __name__ == "__main__":
    run(sys.argv)
