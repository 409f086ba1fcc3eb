"""The networks and measures of the toy world's bench."""
