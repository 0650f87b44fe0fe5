"""Image embeddings learned without labels: Mining on Manifolds (Iscen et al., 2018) on Ray."""

__version__ = "0.1.0"  # here, since a job's copy of the clone is not installed
