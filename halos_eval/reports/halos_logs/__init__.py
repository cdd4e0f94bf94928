"""Read the logs of HALOs' own commands."""
