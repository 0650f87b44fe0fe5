"""Image embeddings learned without labels: Mining on Manifolds (Iscen et al., 2018) on Ray."""
