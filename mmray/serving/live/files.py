"""Files and thumbnails of photos over HTTP."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar
from urllib.parse import quote

from fastapi import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmray.images.containers import read_image
from mmray.images.image_formats import MEDIA_TYPES, format_of
from mmray.serving.live.decoders import DecoderPool
from mmray.serving.live.limits import Slots
from mmray.serving.live.photos import Photos
from mmray.serving.live.thumbnails import Thumbnails
from mmray.serving.pyfunc import LARGEST
from mmray.system.errors import InputError
from mmray.system.locations import error_line

Done = TypeVar("Done")

_FILES, _SENDING = 8, 60.0  # files in memory at once, and the seconds to send one
_PART = 1 << 18  # bytes that are sent at a time
_WAITING = 512  # thumbnails that are waited for at once


class Files:
    """The routes of thumbnails and files, in the order of the numbers of photos.

    Parameters
    ----------
    photos : that can be asked for
    decoders : in whose threads files are read
    max_pixels : an image with more has no thumbnail
    version : another for other indexes; caches of browsers keep the thumbnails of one
    """

    def __init__(
        self, photos: Photos, decoders: DecoderPool, *, max_pixels: int, version: str
    ) -> None:
        self._photos, self._decoders, self._version = photos, decoders, version
        self.thumbnails = Thumbnails(photos, decoders, max_pixels=max_pixels)
        self.waiting, self.files = Slots(_WAITING, "thumbnails"), Slots(_FILES, "photos")

    def check(self, number: int) -> None:
        """Raise status 404 for a number that no photo has."""
        if not 0 <= number < len(self._photos):
            last = len(self._photos) - 1
            raise HTTPException(404, f"no photo {number}: they are numbered from 0 to {last}")

    async def thumbnail(self, number: int, v: str = "") -> Response:
        """Answer with the thumbnail of a photo."""
        self.check(number)
        made = self.thumbnails.kept(number)
        if made is None:
            with self.waiting.taken():
                try:
                    made = await in_pool(self._decoders, lambda: self.thumbnails.make(number))
                except InputError as error:
                    raise HTTPException(404, str(error)) from error
        keep = "private, max-age=86400" if v == self._version else "no-store"
        return Response(made.jpeg, media_type="image/jpeg", headers={"Cache-Control": keep})

    async def image(self, number: int) -> Response:
        """Answer with the file of a photo."""
        self.check(number)
        with ExitStack() as held:
            held.enter_context(self.files.taken())
            content = await in_pool(self._decoders, lambda: self.content(number))
            name = self._photos.images[number].name.rpartition("/")[2]
            return _InParts(content, name, held.pop_all())

    def content(self, number: int) -> bytes:
        """Read the file of a photo; HTTPException where it is no longer there, or no image."""
        image = self._photos.images[number]
        try:
            content = read_image(image, limit=LARGEST)
        except OSError as error:
            why = f"{image.location}: cannot be read ({error_line(error)})"
            raise HTTPException(404, why) from error
        if format_of(content) is None:  # it has been replaced since
            raise HTTPException(404, f"{image.location}: no image any more")
        return content


class _InParts(Response):
    """An image file that is sent part by part; its slot is free when it is sent, or too slow.

    What a client does not take waits in memory: no more than a part, once the time is over.
    """

    def __init__(self, content: bytes, name: str, held: AbstractContextManager[object]) -> None:
        kind = format_of(content)
        assert kind is not None
        printed = quote(name.encode("utf-8", "replace"), safe="")
        headers = {
            "Content-Length": str(len(content)),
            "Content-Disposition": f"inline; filename*=UTF-8''{printed}",
        }
        super().__init__(headers=headers, media_type=MEDIA_TYPES[kind][0])
        self._content, self._held = content, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._held:
            try:
                async with asyncio.timeout(_SENDING):
                    await send(start)
                    for first in range(0, len(self._content), _PART):
                        part = self._content[first : first + _PART]
                        more = first + _PART < len(self._content)
                        body = {"type": "http.response.body", "body": part, "more_body": more}
                        await send(body)
            except TimeoutError:
                return  # unfinished, upon which the connection is closed


async def in_pool(pool: DecoderPool, work: Callable[[], Done]) -> Done:
    """Run a function in a thread of a pool."""
    return await asyncio.get_running_loop().run_in_executor(pool.executor, work)
