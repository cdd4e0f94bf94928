"""What evaluations read from the hub."""
