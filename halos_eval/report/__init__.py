"""What people read: tables made from records and from log files."""
