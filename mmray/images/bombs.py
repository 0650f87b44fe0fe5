"""Images that were made to take time or memory: bounds of what decoding one may cost.

Decoding an image takes time in proportion to its pixels, which have a limit. What is here keeps
files from asking for more: pixels that hardly any bytes stand for, a JPEG of hundreds of scans, a
megabyte that inflates to a gigabyte which no pixel needs.
"""

import io
import re
import time

from PIL import Image

# Real images of this size are compressed to a hundredth at best; what deflates to a thousandth is
# one value all over. JPEG and WebP have no such limit: a smooth sky needs next to nothing.
_LOSSLESS = ("PNG", "TIFF", "GIF")
_LARGE = 1 << 27  # bytes of pixels
_MOST_INFLATED = 200  # bytes of pixels for each byte of a file

_MOST_SCANS = 50  # of a JPEG, each of which goes over all of it; encoders make ten or so
_SCAN, _END = b"\xff\xda", 0xD9
_WITHOUT_CONTENT = (0x01, 0xD8)
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)

_SECONDS = 1.0  # of CPU time for any image, a thousand times what a small one takes
_PIXELS_A_SECOND = 10**7  # a fifth of the speed of slow formats
_FEW = 256  # bytes, of which a read is followed by little work: headers take dozens of such reads


class ImageContent(io.BytesIO):
    """The content of an image file, which can be read only while decoding it takes a fair time.

    Readers take a file by blocks of 64 KiB or less, so that none goes on for long after the limit.
    CPU time is the same on a busy machine.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.seconds, self._start, self._reads = _SECONDS, time.thread_time(), 0

    def allow(self, pixels: int) -> None:
        """Allow the time that an image of so many pixels may take."""
        self.seconds = _SECONDS + pixels / _PIXELS_A_SECOND

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        few = size is not None and 0 <= size < _FEW and self._reads % 16
        if not few and time.thread_time() - self._start > self.seconds:
            raise ValueError(
                f"decoding takes more than {self.seconds:.0f} s of CPU time, too long for its size"
            )
        return super().read(size)


def bomb(name: str, image: Image.Image, data: bytes) -> str | None:
    """Return why an image is not decoded, whatever its number of pixels; None: it is.

    Parameters
    ----------
    name : of its format
    image : opened, not decoded yet
    data : the content of its file
    """
    size = image.width * image.height * len(image.getbands()) // (8 if image.mode == "1" else 1)
    if name in _LOSSLESS and size > max(_LARGE, _MOST_INFLATED * len(data)):
        return f"{size} bytes of pixels in a file of {len(data)} bytes: a decompression bomb"
    scans = _scans(data) if name == "JPEG" and data.count(_SCAN) > _MOST_SCANS else 0
    if scans > _MOST_SCANS:
        return f"a JPEG of {scans} scans, more than {_MOST_SCANS}: a decompression bomb"
    return None


def _scans(data: bytes) -> int:
    """Count the scans of a JPEG; not those of its thumbnails, nor what follows its end."""
    scans, place = 0, 0
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if marker == _END:
            break
        scans += marker == _SCAN[1]
        if marker not in _WITHOUT_CONTENT:
            place += int.from_bytes(data[place : place + 2])
    return scans
