"""A page in the browser: draw paths, drop references, watch. `scripts/studio.py` opens it."""
