"""Features that were made elsewhere, read from files."""
