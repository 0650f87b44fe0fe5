"""The stages of a run: each reads artifacts and writes artifacts."""
