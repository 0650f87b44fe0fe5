"""Measuring embeddings: ground truth, rankings, clusterings."""
