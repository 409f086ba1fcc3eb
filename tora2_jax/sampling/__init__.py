"""From requests to videos."""
