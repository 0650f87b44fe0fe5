"""Near-duplicates: items alike by descriptor and by perceptual hash."""
