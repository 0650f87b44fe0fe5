"""Files, folders, errors and processes: everything that is independent of images."""
