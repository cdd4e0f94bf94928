"""What to run, why, and at what cost."""
