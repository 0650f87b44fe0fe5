"""Reading of features that were computed elsewhere."""
