"""Tables and messages for people."""
