"""Slow, literal, float64 readings of the equations; dense arrays and plain loops.

n items, k neighbours, d dimensions, q queries; b images or tuples, c channels, h x w positions.
"""

import math
from fractions import Fraction

import numpy as np
import torch

# Similarities and their order


def similarity(x: np.ndarray, y: np.ndarray) -> np.float32:
    """Inner product, exactly rounded."""
    return np.float32(math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)))


def similarities(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(q, n) float32, from a product in float64."""
    return (queries.astype(np.float64) @ database.astype(np.float64).T).astype(np.float32)


def descending(values: np.ndarray) -> list[int]:
    """All items: value descending, then id ascending."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def order(query: np.ndarray, rows: np.ndarray, ids: list[int]) -> list[int]:
    """Ids: similarity descending, then id ascending."""
    return sorted(ids, key=lambda i: (-similarity(query, rows[i]), i))


def nearest(database: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Ids (q, k)."""
    return np.array([descending(row)[:k] for row in similarities(database, queries)])


def unit(vector: np.ndarray) -> np.ndarray:
    """l2-normalised; the zero vector stays as it is."""
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in vector))
    return vector / norm if norm > 0 else np.zeros_like(vector)


# Mining


def adjacency(neighbors: np.ndarray, values: np.ndarray, power: float) -> np.ndarray:
    """A of eq. (1)."""
    n = len(neighbors)
    weight = [dict(zip(neighbors[i].tolist(), values[i].tolist(), strict=True)) for i in range(n)]
    A = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j and j in weight[i] and i in weight[j]:
                A[i, j] = max(min(weight[i][j], weight[j][i]), 0.0) ** power
    return A


def normalized_graph(A: np.ndarray) -> np.ndarray:
    """D^-½ A D^-½, rows of isolated items 0."""
    degrees = A.sum(axis=1)
    result = np.zeros_like(A, dtype=np.float64)
    for i, j in zip(*np.nonzero(A), strict=True):
        result[i, j] = A[i, j] / np.sqrt(degrees[i] * degrees[j])
    return result


def components(A: np.ndarray) -> list[list[int]]:
    """Connected components by search from each item in turn, members ascending."""
    found: list[list[int]] = []
    seen: set[int] = set()
    for start in range(len(A)):
        if start in seen:
            continue
        part, frontier = {start}, [start]
        while frontier:
            for j in np.flatnonzero(A[frontier.pop()]).tolist():
                if j not in part:
                    part.add(j)
                    frontier.append(j)
        seen |= part
        found.append(sorted(part))
    return found


def stationary_by_iteration(A: np.ndarray) -> np.ndarray:
    """The lazy walk (I + P) / 2 after 2^40 steps, from an equal chance at each linked item."""
    degrees = A.sum(axis=1)
    linked = degrees > 0
    P = np.divide(A, degrees[:, None], out=np.zeros_like(A), where=linked[:, None])
    lazy = (np.diag(linked.astype(np.float64)) + P) / 2
    for _ in range(40):
        lazy = lazy @ lazy
        lazy[linked] /= lazy[linked].sum(axis=1, keepdims=True)  # rounding must not add up
    return linked / max(linked.sum(), 1) @ lazy


def local_maxima(A: np.ndarray, importance: np.ndarray, count: int) -> list[int]:
    """Items above each direct neighbour, the `count` most important."""
    maxima = []
    for i in range(len(A)):
        around = np.flatnonzero(A[i])
        if len(around) and all(importance[i] > importance[j] for j in around):
            maxima.append(i)
    return sorted(maxima, key=lambda i: (-importance[i], i))[:count]


def diffusion(A_hat: np.ndarray, anchor: int, alpha: float) -> np.ndarray:
    """(I − αÂ)⁻¹ e_i, eq. (3)."""
    n = len(A_hat)
    return np.linalg.solve(np.eye(n) - alpha * A_hat.astype(np.float64), np.eye(n)[anchor])


def conjugate_gradient(
    A_hat: np.ndarray, anchor: int, alpha: float, rtol: float, max_iter: int
) -> tuple[np.ndarray, int]:
    """The iterate of smallest residual of the textbook method, and the steps taken."""
    L = np.eye(len(A_hat)) - alpha * A_hat.astype(np.float64)
    x = np.zeros(len(L))
    r = np.eye(len(L))[anchor]
    p, best, smallest, steps = r.copy(), x, np.inf, 0
    while steps < max_iter:
        steps += 1
        squared = r @ r
        step = squared / (p @ L @ p)
        x = x + step * p
        r = r - step * (L @ p)
        if r @ r < smallest:
            best, smallest = x, r @ r
        if np.sqrt(r @ r) <= rtol:
            break
        p = r + (r @ r) / squared * p
    return best, steps


def pools(
    s_m: np.ndarray,
    s_e: np.ndarray,
    anchor: int,
    *,
    positive_k: int,
    negative_k: int,
    max_negatives: int,
) -> dict[str, list[int]]:
    """P⁺ and P⁻ of one anchor, eqs. (5) and (6), from its similarities (n,) to all items."""
    K = min(negative_k, int(np.ceil(len(s_m) / 2)))
    by_m, by_e = descending(s_m), descending(s_e)
    named = [i for i in by_m[:positive_k] if i not in by_e[:positive_k] and i != anchor]
    negatives = [i for i in by_e[:K] if i not in by_m[:K] and i != anchor][:max_negatives]
    positives = [i for i in named if s_m[i] > 0]
    compared = by_e[: max(K, positive_k, 5)]
    return {
        "positives": positives,
        "positive_rank_e": [by_e.index(i) + 1 if i in compared else 0 for i in positives],
        "negatives": negatives,
        "negative_rank_m": [by_m.index(i) + 1 for i in negatives],
        "manifold_neighbors": [i for i in by_m[:positive_k] if s_m[i] > 0 and i != anchor],
        "zero_positives": [i for i in named if s_m[i] <= 0],
    }


# Images and networks


def resized(width: int, height: int, longest_side: int, box: tuple | None) -> tuple[int, int]:
    """(width, height) after cropping to the box and reducing by the scale of the whole image."""
    scale = min(Fraction(1), Fraction(longest_side, max(width, height)))
    if box is not None:
        left, top = max(0, round(box[0])), max(0, round(box[1]))
        right, bottom = min(width, round(box[2])), min(height, round(box[3]))
        width, height = right - left, bottom - top
    return max(1, round(width * scale)), max(1, round(height * scale))


def preprocessed(network: str, pixels: np.ndarray) -> np.ndarray:
    """Preprocessing as the sources of the weights write it: (b, 3, h, w) of 0..255 -> the input."""
    x = pixels.astype(np.float64)

    def by_channel(values: tuple[float, float, float]) -> np.ndarray:
        return np.array(values).reshape(1, 3, 1, 1)

    if network == "vgg16":  # torchvision, VGG16_Weights.IMAGENET1K_FEATURES
        return (x / 255 - by_channel((0.48235, 0.45882, 0.40784))) / (1 / 255)
    if network == "bvlc_googlenet":  # Caffe's train_val.prototxt, which has them as BGR
        return x - by_channel((123, 117, 104))
    if network == "efficientnet_lite0":  # TensorFlow, efficientnet/lite
        return (x - 127) / 128
    mean, std = by_channel((0.485, 0.456, 0.406)), by_channel((0.229, 0.224, 0.225))
    x = (x / 255 - mean) / std
    if network == "googlenet":  # torchvision, GoogLeNet._transform_input
        return x * (std / 0.5) + (mean - 0.5) / 0.5
    return x


def caffe_googlenet(state: dict[str, torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """bvlc_googlenet's deploy.prototxt, line by line, up to inception_5b/output."""

    def conv(name: str, x: torch.Tensor, pad: int = 0, stride: int = 1) -> torch.Tensor:
        weight, bias = (state[f"{name.replace('/', '.')}.{part}"] for part in ("weight", "bias"))
        return torch.clamp(torch.conv2d(x, weight, bias, stride, pad), min=0)

    def pool(x: torch.Tensor) -> torch.Tensor:  # MAX, kernel_size 3, stride 2, sizes rounded up
        h, w = x.shape[2:]
        rows = [x[:, :, i : i + 3].amax(2) for i in range(0, max(h - 1, 1), 2)]
        x = torch.stack(rows, 2)
        return torch.stack([x[..., j : j + 3].amax(3) for j in range(0, max(w - 1, 1), 2)], 3)

    def lrn(x: torch.Tensor) -> torch.Tensor:  # local_size 5, alpha 0.0001, beta 0.75
        c = x.shape[1]
        near = [(x[:, max(i - 2, 0) : i + 3] ** 2).sum(1) for i in range(c)]
        return x / (1 + 0.0001 / 5 * torch.stack(near, 1)) ** 0.75

    def inception(name: str, x: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-torch.inf)
        h, w = x.shape[2:]
        shifts = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        pooled = torch.stack(shifts).amax(0)
        of_5x5 = conv(f"{name}/5x5", conv(f"{name}/5x5_reduce", x), pad=2)
        of_3x3 = conv(f"{name}/3x3", conv(f"{name}/3x3_reduce", x), pad=1)
        parts = [conv(f"{name}/1x1", x), of_3x3, of_5x5, conv(f"{name}/pool_proj", pooled)]
        return torch.cat(parts, 1)

    x = lrn(pool(conv("conv1/7x7_s2", maps, pad=3, stride=2)))
    x = pool(lrn(conv("conv2/3x3", conv("conv2/3x3_reduce", x), pad=1)))
    x = pool(inception("inception_3b", inception("inception_3a", x)))
    for letter in "abcde":
        x = inception(f"inception_4{letter}", x)
    return inception("inception_5b", inception("inception_5a", pool(x)))


def max_of(region: np.ndarray) -> np.ndarray:
    """(c, h, w) -> (c,), not normalised."""
    return np.array([max(float(x) for x in channel.ravel()) for channel in region])


def mac(maps: np.ndarray) -> np.ndarray:
    return np.array([unit(max_of(image)) for image in maps])


def gem(maps: np.ndarray, p: float) -> np.ndarray:
    return np.array(
        [
            unit(
                np.array(
                    [
                        (sum(max(float(x), 0.0) ** p for x in channel.ravel()) / channel.size)
                        ** (1 / p)
                        for channel in image
                    ]
                )
            )
            for image in maps
        ]
    )


def rmac(maps: np.ndarray, levels: int) -> np.ndarray:
    rows = []
    for image in maps:
        total = unit(max_of(image))
        for top, left, side in rmac_regions(image.shape[1], image.shape[2], levels):
            total = total + unit(max_of(image[:, top : top + side, left : left + side]))
        rows.append(unit(total))
    return np.array(rows)


def rmac_regions(H: int, W: int, L: int) -> list[tuple[int, int, int]]:
    """The grid as the published code writes it, step by step, in rational numbers."""
    ovr = Fraction(4, 10)
    steps = [2, 3, 4, 5, 6, 7]
    w = min(W, H)
    b = [Fraction(max(H, W) - w, step - 1) for step in steps]
    gaps = [abs((w**2 - w * bi) / Fraction(w**2) - ovr) for bi in b]
    idx = gaps.index(min(gaps))
    Wd = Hd = 0
    if H < W:
        Wd = idx + 1
    elif H > W:
        Hd = idx + 1
    regions = []
    for level in range(1, L + 1):
        wl = math.floor(Fraction(2 * w, level + 1))
        wl2 = math.floor(Fraction(wl, 2) - 1)
        bw = Fraction(0) if level + Wd == 1 else Fraction(W - wl, level + Wd - 1)
        cenW = [math.floor(wl2 + i * bw) - wl2 for i in range(level - 1 + Wd + 1)]
        bh = Fraction(0) if level + Hd == 1 else Fraction(H - wl, level + Hd - 1)
        cenH = [math.floor(wl2 + i * bh) - wl2 for i in range(level - 1 + Hd + 1)]
        for i_ in cenH:
            for j_ in cenW:
                if wl == 0:
                    continue
                regions.append((i_, j_, wl))
    return regions


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)))


def contrastive_loss(anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray, m: float):
    """Eq. (7)."""
    return np.array(
        [
            distance(r, p) ** 2 + max(0.0, m - distance(r, n)) ** 2
            for r, p, n in zip(anchor, positive, negative, strict=True)
        ]
    )


def triplet_loss(anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray, m: float):
    """Eq. (8)."""
    return np.array(
        [
            max(0.0, m + distance(r, p) ** 2 - distance(r, n) ** 2)
            for r, p, n in zip(anchor, positive, negative, strict=True)
        ]
    )


# Ranking and its scores


def average_precision(ranking: list[int], positives: set[int], junk: set[int]) -> float:
    """compute_ap of the Oxford buildings page, line by line."""
    old_recall, old_precision = 0.0, 1.0
    area, found, seen = 0.0, 0, 0
    for item in ranking:
        if item in junk:
            continue
        if item in positives:
            found += 1
        recall = found / len(positives)
        precision = found / (seen + 1.0)
        area += (recall - old_recall) * ((old_precision + precision) / 2.0)
        old_recall, old_precision = recall, precision
        seen += 1
    return area


def kept_ranking(ranking: list[int], junk: set[int]) -> list[int]:
    return [item for item in ranking if item not in junk]


def precision_at_k(ranking: list[int], positives: set[int], junk: set[int], k: int) -> float | None:
    """As the program of the revisited benchmarks: precision at min(k, place of the last one)."""
    kept = kept_ranking(ranking, junk)
    places = [place for place, item in enumerate(kept, start=1) if item in positives]
    if not places:
        return None
    k = min(max(places), k)
    return sum(place <= k for place in places) / k


def hit_at_k(ranking: list[int], positives: set[int], junk: set[int], k: int) -> bool:
    return any(item in positives for item in kept_ranking(ranking, junk)[:k])


def expanded_query(
    database: np.ndarray, query: np.ndarray, own: int, items: int, power: float
) -> np.ndarray:
    """q + the sum of [qx]^power x over the first items, but the query itself; of length 1."""
    first = [i for i in order(query, database, list(range(len(database)))) if i != own][:items]
    total = query.astype(np.float64)
    for i in first:
        total = total + max(float(similarity(query, database[i])), 0.0) ** power * database[i]
    return total / np.sqrt((total**2).sum())


def query_diffusion(database: np.ndarray, query: np.ndarray, own: int) -> np.ndarray:
    """f of (I - 0.99 A^) f = y, with y the cubed similarities of the ten nearest."""
    n = len(database)
    neighbors = nearest(database, database, min(50, n))
    values = np.take_along_axis(similarities(database, database), neighbors, axis=1)
    A_hat = normalized_graph(adjacency(neighbors, values, 3.0))
    y = np.zeros(n)
    for i in [i for i in order(query, database, list(range(n))) if i != own][:10]:
        y[i] = max(float(similarity(query, database[i])), 0.0) ** 3
    return np.linalg.solve(np.eye(n) - 0.99 * A_hat, y)


def recall_at_k(embeddings: np.ndarray, labels: np.ndarray, k: int) -> float:
    hits = 0
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        hits += any(labels[j] == labels[i] for j in order(embeddings[i], embeddings, others)[:k])
    return hits / len(labels)


# Whitening


def positive_largest(projection: np.ndarray) -> np.ndarray:
    """Rows with the sign that makes their largest entry positive."""
    return np.array([row if row[np.argmax(abs(row))] > 0 else -row for row in projection])


def pca_whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and projection, from singular values; n > d and nothing degenerate."""
    x = features.astype(np.float64)
    mean = np.array([math.fsum(column) / len(x) for column in x.T])
    _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
    return mean, positive_largest((directions.T / (singular / math.sqrt(len(x)))).T)


def lda_whitening(
    features: np.ndarray, queries: np.ndarray, positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and projection by Cholesky's square root, as in the code of Radenovic et al."""
    x = features.astype(np.float64)
    mean = sum(x[q] for q in queries) / len(queries)
    pairs = zip(queries, positives, strict=True)
    within = sum(np.outer(x[q] - x[p], x[q] - x[p]) for q, p in pairs) / len(queries)
    root = np.linalg.inv(lower_root(within))
    total = sum(np.outer(root @ (row - mean), root @ (row - mean)) for row in x)
    values, vectors = np.linalg.eigh(total)
    rotation = vectors[:, np.argsort(-values)].T
    return mean, positive_largest(rotation @ root)


def lower_root(matrix: np.ndarray) -> np.ndarray:
    """Cholesky's root of a matrix, or of it plus the least of 1e-10 I, 1e-9 I, ... that has one."""
    added = 0.0
    while True:
        try:
            return np.linalg.cholesky(matrix + added * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            added = 1e-10 if added == 0 else 10 * added


def supported(variances: list[float], samples: int) -> list[float]:
    """Variances with those of the directions beyond samples / 4 raised; descending."""
    kept = max(samples // 4, 1)
    smallest = variances[min(kept, len(variances)) - 1]
    return [max(v, smallest) for v in variances]


# Variants of R-MAC, images at other scales, moments


def rmac_variant(
    maps: np.ndarray,
    levels: int,
    whole: bool,
    mean: np.ndarray | None = None,
    projection: np.ndarray | None = None,
) -> np.ndarray:
    """The MAC of each region normalised, whitened and normalised again, then summed."""
    rows = []
    for image in maps:
        squares = rmac_regions(image.shape[1], image.shape[2], levels)
        parts = [image[:, top : top + side, left : left + side] for top, left, side in squares]
        total = np.zeros(len(image))
        for part in [image, *parts] if whole else parts:
            vector = unit(max_of(part))
            if mean is not None:
                centred = [float(x) - float(m) for x, m in zip(vector, mean, strict=True)]
                vector = unit(
                    np.array(
                        [
                            math.fsum(p * x for p, x in zip(row, centred, strict=True))
                            for row in projection.tolist()
                        ]
                    )
                )
            total = total + vector
        rows.append(unit(total))
    return np.array(rows)


def resized_line(line: np.ndarray, size: int) -> np.ndarray:
    """(n, ...) -> (size, ...): weighted with a triangle as wide as a new pixel, an old at least."""
    step = len(line) / size
    width = max(step, 1.0)
    new = []
    for i in range(size):
        weights = [max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * step) / width) for j in range(len(line))]
        new.append(sum(w * x for w, x in zip(weights, line, strict=True)) / sum(weights))
    return np.array(new)


def resized_pixels(image: np.ndarray, scale: float) -> np.ndarray:
    """(3, h, w) float, the sides multiplied and rounded, each at least 1."""
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    columns = resized_line(np.moveaxis(image, 1, 0), height)
    return np.moveaxis(resized_line(np.moveaxis(columns, 2, 0), width), [0, 1, 2], [2, 1, 0])


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, exactly rounded sums."""
    x = rows.astype(np.float64)
    mean = np.array([math.fsum(column) / len(x) for column in x.T])
    centred = x - mean
    columns = [[math.fsum(a * b) / len(x) for b in centred.T] for a in centred.T]
    return mean, np.array(columns)


# Fine-tuning


def tuple_loss(
    anchor: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    loss: str,
    m: float,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """(b,): the mean of eq. (7) or (8) over the pairs of each anchor, weighted by the positive."""
    values = []
    for r in range(len(anchor)):
        total = 0.0
        for i, positive in enumerate(positives[r]):
            to_positive = distance(anchor[r], positive)
            for negative in negatives[r]:
                to_negative = distance(anchor[r], negative)
                if loss == "contrastive":
                    value = to_positive**2 + max(0.0, m - to_negative) ** 2
                else:
                    value = max(0.0, m + to_positive**2 - to_negative**2)
                total += value * (1.0 if weights is None else float(weights[r][i]))
        values.append(total / (len(positives[r]) * len(negatives[r])))
    return np.array(values)


def siamese_loss(query: np.ndarray, positive: np.ndarray, negatives: np.ndarray, m: float) -> float:
    """Radenović et al. 2016 for one tuple: eq. (2) there, averaged over its pairs."""
    pairs = [(positive, 1), *((negative, 0) for negative in negatives)]
    distances = [(distance(query, other), y) for other, y in pairs]
    halves = [(y * d**2 + (1 - y) * max(0.0, m - d) ** 2) / 2 for d, y in distances]
    return sum(halves) / len(pairs)


def hard_negatives(anchor: np.ndarray, rows: np.ndarray, ids: list[int], count: int) -> list[int]:
    """The ids of the rows nearest to the anchor's: distance ascending, then id ascending."""
    return sorted(ids, key=lambda i: (distance(anchor, rows[i]), i))[:count]


def labelled_negatives(
    query: int, rows: np.ndarray, pool: list[int], clusters: list[int], count: int
) -> list[int]:
    """The rule of the authors of retrieval-SfM: down the ranked pool, at most one of a cluster."""
    chosen, used = [], [clusters[query]]
    for image in order(rows[query], rows, pool):
        if len(chosen) < count and clusters[image] not in used:
            chosen.append(image)
            used.append(clusters[image])
    return chosen


def stepped_rates(base: float, decay: float, every: int, epochs: int) -> list[float]:
    """The learning rate of each epoch: multiplied by the decay after every so many epochs."""
    rates, rate = [], base
    for epoch in range(1, epochs + 1):
        rates.append(rate)
        if epoch % every == 0:
            rate = rate * decay
    return rates


def sgd(
    parameters: list[float],
    gradient,
    rates: list[float],
    momentum: float,
    weight_decay: float,
    dampening: float = 0.0,
) -> list[float]:
    """One step for each rate: v = momentum v + (1 - dampening) (g + decay w), then w -= rate v.

    The first gradient is not damped, as in `optim.sgd` of Torch, which damps by the momentum.
    """
    velocity: list[float] = []
    for rate in rates:
        slopes = [
            g + weight_decay * w for g, w in zip(gradient(parameters), parameters, strict=True)
        ]
        if velocity:
            pairs = zip(velocity, slopes, strict=True)
            velocity = [momentum * v + (1 - dampening) * slope for v, slope in pairs]
        else:
            velocity = slopes
        parameters = [w - rate * v for w, v in zip(parameters, velocity, strict=True)]
    return parameters


def adam(
    parameters: list[float], gradient, rates: list[float], weight_decay: float, decoupled: bool
) -> list[float]:
    """Kingma & Ba 2015, Alg. 1; decoupled: Loshchilov & Hutter 2019, Alg. 2."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first, second = [0.0] * len(parameters), [0.0] * len(parameters)
    for t, rate in enumerate(rates, start=1):
        g, updated = gradient(parameters), []
        for i, w in enumerate(parameters):
            slope = g[i] if decoupled else g[i] + weight_decay * w
            first[i] = beta1 * first[i] + (1 - beta1) * slope
            second[i] = beta2 * second[i] + (1 - beta2) * slope**2
            mean, square = first[i] / (1 - beta1**t), second[i] / (1 - beta2**t)
            shrink = rate * weight_decay * w if decoupled else 0.0
            updated.append(w - shrink - rate * mean / (math.sqrt(square) + epsilon))
        parameters = updated
    return parameters
