"""Candidates for nearest neighbours by a GPU: a running top-k over tiles of the product.

n items, m queries, d dims, k neighbours.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from mmray.system.arrays import Features, Ids

_TILE_ITEMS = 65_536


def most_similar(
    database: torch.Tensor, queries: torch.Tensor, k: int, room: int, slack: Features
) -> tuple[Ids, Ids, NDArray[np.bool_]]:
    """Find the items that may be among the k most similar, given the error of the products.

    Parameters
    ----------
    database : (n, d) float32, on the device
    queries : (m, d) float32
    k, room : int
        k <= room <= n; room is the number of candidates to keep.
    slack : (m,) float32
        The most by which the errors of two products may differ.

    Returns
    -------
    candidates : (m, room) int64
        Ascending ids; the first counts of each row.
    counts : (m,) int64
    full : (m,) bool
        True where items beyond the room may belong to the k too.
    """
    device = database.device
    queries = queries.to(device)
    values = torch.empty((len(queries), 0), device=device)
    ids = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for first in range(0, len(database), _TILE_ITEMS):
        tile = queries @ database[first : first + _TILE_ITEMS].T
        best, places = tile.topk(min(room, tile.shape[1]), dim=1)
        values, ids = torch.cat([values, best], 1), torch.cat([ids, places + first], 1)
        values, chosen = values.topk(min(room, values.shape[1]), dim=1)
        ids = ids.gather(1, chosen)
    least = values[:, k - 1 : k] - torch.from_numpy(slack).to(device)[:, None]
    possible = values >= least
    full = possible[:, -1] & (room < len(database))
    counts = possible.sum(dim=1)
    candidates = ids.masked_fill(~possible, len(database)).sort(dim=1).values
    return candidates.cpu().numpy(), counts.cpu().numpy(), full.cpu().numpy()
