"""`python -m tora2_jax.trajectory`; see `trajectory.command`."""

import sys

from tora2_jax.system.stop import exit_code
from tora2_jax.trajectory.command import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
