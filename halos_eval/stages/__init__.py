"""What a pod does: one module for each stage. Heavy libraries are imported inside the functions that use them."""
