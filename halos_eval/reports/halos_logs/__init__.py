"""The logs that HALOs' own commands leave."""
