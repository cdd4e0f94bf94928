"""The harness stage: one lm-evaluation-harness task."""
