"""Files, folders and processes: what has nothing to do with images."""
