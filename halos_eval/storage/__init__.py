"""What is kept in the store, where, and in which form."""
