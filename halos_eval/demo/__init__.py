"""What the demonstration needs and the product does not: two small checkpoints to evaluate."""
