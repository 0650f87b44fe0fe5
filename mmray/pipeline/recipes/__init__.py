"""The jobs: which stages they run, in which order."""
