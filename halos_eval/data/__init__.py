"""The data of evaluations: fetched into the cache, and read from it."""
