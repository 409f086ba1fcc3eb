"""What measures videos."""
