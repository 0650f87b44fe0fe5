"""Sources of images, a collection of them, and their pixels."""
