"""The command line ``halos-eval COMMAND``."""
