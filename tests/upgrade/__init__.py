"""What the version before has written works with this one."""
