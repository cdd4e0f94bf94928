"""Checkpoints: registries, weights and metadata, and checks that they are complete."""
