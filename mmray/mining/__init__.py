"""Graph, anchors, manifold similarity and pools: eqs. (1) to (6)."""
