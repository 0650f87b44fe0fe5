"""Ground truths in the layouts that benchmarks are published in."""

import numpy as np


def cells(*values, shape=None):
    """A MATLAB cell array, for scipy.io.savemat: columns are filled first."""
    made = np.empty(len(values), object)
    for i, value in enumerate(values):
        made[i] = value
    return made.reshape(shape or (1, len(values)), order="F")


def structs(*rows):
    """A 1 x n struct array, for scipy.io.savemat."""
    made = np.zeros((1, len(rows)), [(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        made[0, i] = tuple(row.values())
    return made
