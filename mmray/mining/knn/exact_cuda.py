"""Exact nearest neighbours on a GPU, whose memory holds the database.

n items, m queries, d dimensions, k neighbours.

As on CPUs, a product in bfloat16 proposes candidates, and its error has a bound. Of each tile of
the product only what reaches the threshold of its query is kept, looked for in those blocks of
columns whose largest reaches it: to sort tiles, or to compare all of them, would take most of the
time. Candidates are settled here too, with the sums of `kernels.similarity` in their order, so that
the bits are those of a CPU.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from mmray.mining.knn.products import scaled, tensor
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError

_TILE_ITEMS = 65_536
_BLOCK = 32  # columns of a tile, of which the largest is compared first
_GATHERED = 2**26  # numbers of candidates' rows held at a time
_LANES = 16  # sums side by side, as in `kernels.similarity`

Found = tuple[NDArray[np.bool_], Ids, Features]


class DeviceIndex:
    """A database in the memory of a device, in single precision and in bfloat16.

    Raises
    ------
    InputError
        The device has too little memory for it.
    """

    def __init__(self, database: Features, norm: float, device: str) -> None:
        if device != "cpu":
            # Sums in bfloat16, and products in TF32, would break the bounds of the errors.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self.norm, self.device = norm, device
        try:
            self.items = tensor(database).to(device)
            self.half = self.items.bfloat16()
        except torch.OutOfMemoryError as error:
            (n, d), needed = database.shape, 6 * database.size / 1e9
            raise InputError(
                f"{n:,} features of {d} dimensions take {needed:.1f} GB of a GPU, which has less "
                f"free: choose --mining.memory {needed / 3:.2g}, by which they are searched in "
                "parts, or --mining.device cpu"
            ) from error
        self.half_error = max(
            (
                float(torch.linalg.vector_norm(rounded.double() - rows, dim=1).max())
                for rounded, rows in zip(
                    self.half.split(_TILE_ITEMS), self.items.split(_TILE_ITEMS), strict=True
                )
            ),
            default=0.0,
        )

    def search(self, queries: Features, k: int, *, room: int, half: bool) -> Found:
        """Find the k nearest items of nonzero queries, with a fixed room for candidates of each.

        Parameters
        ----------
        queries : (m, d) float32
        k, room : int
            k <= room <= n.
        half : bool
            Whether to multiply in bfloat16.

        Returns
        -------
        full : (m,) bool
            True for queries with too little room.
        ids, similarities : (f, k) int64, float32
            Of the f other queries.
        """
        unit, slack = scaled(queries, self.norm, self.half_error if half else None)
        items = self.half if half else self.items
        candidates, full = _candidates(
            items, unit.to(self.device), k, room, torch.from_numpy(slack).to(self.device)
        )
        kept = ~full
        ids, similarities = self.settled(tensor(queries).to(self.device)[kept], candidates[kept], k)
        return full.cpu().numpy(), ids.cpu().numpy(), similarities.cpu().numpy()

    def settled(
        self, queries: torch.Tensor, candidates: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Select the k most similar of each query's candidates (m, c), ascending, n where none."""
        m, c = candidates.shape
        ids = torch.empty((m, k), dtype=torch.int64, device=self.device)
        similarities = torch.empty((m, k), device=self.device)
        step = max(1, _GATHERED // max(1, c * queries.shape[1]))
        for start in range(0, m, step):
            part = slice(start, start + step)
            exact = self._similarities(queries[part], candidates[part])
            # Stable: ties stay in the order of ids.
            ordered, places = exact.sort(dim=1, descending=True, stable=True)
            ids[part] = candidates[part].gather(1, places[:, :k])
            similarities[part] = ordered[:, :k]
        return ids, similarities

    def _similarities(self, queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Compute the similarities (m, c) float32 as `kernels.similarity` does; -inf for none."""
        n, d = self.items.shape
        rows, wide = self.items[candidates.clamp(max=n - 1)], queries.double()[:, None]
        whole = d - d % _LANES
        sums = torch.zeros((*candidates.shape, _LANES), dtype=torch.float64, device=self.device)
        for first in range(0, whole, _LANES):
            columns = slice(first, first + _LANES)
            sums += rows[..., columns].double() * wide[..., columns]
        for half in (8, 4, 2, 1):
            sums = sums[..., :half] + sums[..., half:]
        total = sums[..., 0]
        for column in range(whole, d):
            total = total + rows[..., column].double() * wide[..., column]
        return total.float().masked_fill(candidates == n, -torch.inf)


def _candidates(
    items: torch.Tensor, queries: torch.Tensor, k: int, room: int, slack: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the items that may be among the k most similar, given the error of the products.

    Parameters
    ----------
    items, queries : (n, d), (m, d) bfloat16 or float32, on the device
    k, room : int
        k <= room <= n; room is the number of candidates to keep.
    slack : (m,) float32
        The most by which the errors of two products may differ.

    Returns
    -------
    candidates : (m, c) int64
        Ascending ids; n past the candidates of a query.
    full : (m,) bool
        True where items beyond the room may belong to the k too.
    """
    n, m = len(items), len(queries)
    values = torch.empty((m, 0), device=items.device)
    ids = torch.empty((m, 0), dtype=torch.int64, device=items.device)
    threshold = None
    for first in range(0, n, _TILE_ITEMS):
        tile = queries @ items[first : first + _TILE_ITEMS].T
        best = _best_of_blocks(tile)
        if threshold is None and best.shape[1] >= k:
            # Blocks have no item in common: the k-th best of them is no more than the k-th item.
            threshold = best.topk(k, dim=1).values[:, -1].float() - slack
        reaching, places = _reaching(tile, best, threshold, room)
        values, ids = torch.cat([values, reaching], 1), torch.cat([ids, places + first], 1)
        values, chosen = values.topk(min(room, values.shape[1]), dim=1)
        ids = ids.gather(1, chosen)
        if values.shape[1] >= k:
            threshold = values[:, k - 1] - slack
    assert threshold is not None, "k is at most n"
    possible = values >= threshold[:, None]
    full = possible[:, -1] & (values.shape[1] == room) & (room < n)
    width = max(k, int(possible.sum(dim=1).max()))
    candidates = ids.masked_fill(~possible, n).sort(dim=1).values[:, :width]
    return candidates, full


def _best_of_blocks(tile: torch.Tensor) -> torch.Tensor:
    """Return the largest product of each block of columns of a tile (m, t); the last is shorter."""
    whole = tile.shape[1] - tile.shape[1] % _BLOCK
    best = [tile[:, :whole].unflatten(1, (-1, _BLOCK)).amax(2)]
    if whole < tile.shape[1]:
        best.append(tile[:, whole:].amax(1, keepdim=True))
    return torch.cat(best, 1)


def _reaching(
    tile: torch.Tensor, best: torch.Tensor, threshold: torch.Tensor | None, room: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the products (m, c) float32 of a tile that reach a threshold (m,), and their columns.

    Where some row has more than the room, or there is no threshold yet: the largest of each row.
    What is missing to c is -inf. `best` has the largest of each block, of which few are looked at.
    """
    if threshold is not None:
        rows, blocks = (best >= threshold[:, None]).nonzero(as_tuple=True)
        columns = blocks[:, None] * _BLOCK + torch.arange(_BLOCK, device=tile.device)
        inside = columns < tile.shape[1]
        found = tile[rows[:, None], columns.clamp(max=tile.shape[1] - 1)].float()
        chosen, within = (inside & (found >= threshold[rows, None])).nonzero(as_tuple=True)
        rows = rows[chosen]
        counts = torch.zeros(len(tile), dtype=torch.int64, device=tile.device)
        counts.scatter_add_(0, rows, torch.ones_like(rows))
        most = int(counts.max())
        if most <= room:
            places = torch.arange(len(rows), device=tile.device)
            places -= (counts.cumsum(0) - counts)[rows]
            values = torch.full((len(tile), most), -torch.inf, device=tile.device)
            ids = torch.zeros((len(tile), most), dtype=torch.int64, device=tile.device)
            values[rows, places] = found[chosen, within]
            ids[rows, places] = columns[chosen, within]
            return values, ids
    values, ids = tile.topk(min(room, tile.shape[1]), dim=1)
    return values.float(), ids
