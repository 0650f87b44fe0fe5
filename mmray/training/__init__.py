"""Fine-tuning on mined tuples: Sec. 3.4, eqs. (7) and (8)."""
