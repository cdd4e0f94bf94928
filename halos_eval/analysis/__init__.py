"""Statistics: numbers in, numbers out. Nothing here reads a file."""
