"""Training from labels, for the rivals and peers of the tables."""
