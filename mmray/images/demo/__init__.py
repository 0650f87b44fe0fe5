"""The rendered demonstration set."""
