"""Diffusion on the graph: eqs. (2) to (4)."""
