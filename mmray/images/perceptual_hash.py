"""Perceptual hashes: 64 bits of an image that survive re-encoding and a change of size.

The DCT-based hash of Zauner, "Implementation and benchmarking of perceptual image hash functions"
(2010). As in the package imagehash, the 8 x 8 lowest frequencies include the mean, which pHash's
own code leaves out with all of its row and column; as there, the transform is orthonormal.
"""

import numpy as np
from PIL import Image
from scipy.fft import dct

from mmray.system.arrays import Pixels

BITS = 64
_SIDE, _LOW = 32, 8  # of the reduced image, and of the square of its frequencies that is kept
# The orthonormal transform, of which a few waves are needed: twice as fast as all of them by FFT.
_WAVES = dct(np.eye(_SIDE), norm="ortho", axis=0)[:_LOW]
_FLAT = 1e-3  # of a frequency, in gray levels: below it there is nothing but rounding


def perceptual_hash(pixels: Pixels) -> int:
    """Compute the perceptual hash of an image; the Hamming distance of two says how alike they are.

    The image is reduced to 32 x 32 gray values, whatever its shape. Bit 8 i + j, from the highest,
    tells whether frequency (i, j) of its discrete cosine transform is above the median of the
    lowest 8 x 8. An image without any detail has the hash 0.

    Parameters
    ----------
    pixels : (h, w, 3) uint8

    Returns
    -------
    The hash, below 2**64.

    Examples
    --------
    >>> ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 300, 3))
    >>> (perceptual_hash(ramp) ^ perceptual_hash(ramp[::2, ::2])).bit_count()
    0
    """
    image = Image.fromarray(pixels)
    # Whole blocks are averaged first, to at least twice the size: 5 times as fast at 1024 pixels.
    x, y = (max(1, length // (2 * _SIDE)) for length in image.size)
    image = image.reduce((x, y)).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = (_WAVES @ np.asarray(image, np.float64) @ _WAVES.T).ravel()
    if np.abs(low[1:]).max() < _FLAT:
        return 0
    below, above = np.sort(low)[BITS // 2 - 1 : BITS // 2 + 1]
    return int.from_bytes(np.packbits(low > (below + above) / 2).tobytes(), "big")
