"""Data that is fetched and pinned beforehand: the manifest, what fetches for it, and what reads by it."""
