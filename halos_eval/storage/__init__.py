"""The files of the store: layout, formats, reading and writing."""
