"""The HTTP application: a page, and the JSON interface that it uses.

A photo is named by its number alone, and only the index knows which file that is: nothing in a
request can name another. p photos, k results.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from joblib import cpu_count
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import JSONResponse, Response

from mmray.descriptors.settings import Preprocessing
from mmray.images.decoding import stored_box_of
from mmray.serving.live import searching
from mmray.serving.live.answers import constant, corners_of, refusal
from mmray.serving.live.decoders import DecoderPool
from mmray.serving.live.files import Files, in_pool
from mmray.serving.live.labels import LabelledPhotos
from mmray.serving.live.limits import Bodies, Slots
from mmray.serving.live.photos import Photos
from mmray.serving.live.searching import Found, LiveIndex, Searcher
from mmray.system.arrays import Box, Pixels
from mmray.system.errors import InputError

Numbers = Annotated[list[int], Query(max_length=500)]

_ROOM = 256 << 20  # bytes of the photos that are sent to a server at once


@dataclass(frozen=True, kw_only=True)
class Assets:
    """The page with its script and its style."""

    page: str
    script: str
    style: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what clients may ask for.

    Attributes
    ----------
    top, most : results of a search, and the most that one may ask for
    body_bytes, body_seconds : of a photo that is sent, and until it has arrived
    pixels : of an image; those of more are not decoded
    waiting : searches at once, those that wait included
    """

    top: int
    most: int = 500
    body_bytes: int
    body_seconds: float
    pixels: int
    waiting: int


class LiveSearch:
    """The routes, and what they work with.

    Parameters
    ----------
    indexes : one, or two that are compared
    labelled : where labels are kept
    version : another for other indexes; thumbnails in the caches of browsers are of one version
    """

    def __init__(
        self,
        indexes: Sequence[LiveIndex],
        *,
        assets: Assets,
        labelled: LabelledPhotos,
        limits: Limits,
        version: str,
    ) -> None:
        self.indexes, self.photos = indexes, Photos.of([each.index.images for each in indexes])
        processes = max(1, cpu_count() // 2)
        self.searcher = Searcher(indexes, max(1, cpu_count() - processes))
        # Apart: a search does not wait behind the thumbnails of another.
        self._queries = DecoderPool(processes, "queries")
        self._pictures = DecoderPool(processes, "pictures")
        self._files = Files(self.photos, self._pictures, max_pixels=limits.pixels, version=version)
        self._assets, self._labelled, self._limits = assets, labelled, limits
        room = max(_ROOM, limits.body_bytes)
        self._bodies = Bodies(limits.body_bytes, limits.body_seconds, room)
        self._searches = Slots(limits.waiting, "searches")

    @asynccontextmanager
    async def _running(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        self.close()

    def start(self) -> None:
        """Start the processes that decode, and search once."""
        self._queries.start()
        self._pictures.start()
        self.searcher.warm_up()

    def close(self) -> None:
        """End threads and processes, after the searches that wait."""
        self._queries.close()
        self._pictures.close()
        self.searcher.close()

    def app(self) -> FastAPI:
        """Return the application with its routes."""
        app = FastAPI(openapi_url=None, lifespan=self._running)
        assets = self._assets
        for path, content, kind in (
            ("/live.js", assets.script, "text/javascript"),
            ("/live.css", assets.style, "text/css"),
        ):
            app.add_api_route(path, constant(content, kind))
        app.add_api_route("/", constant(assets.page, "text/html"))
        app.add_api_route("/api/search", self.search, methods=["POST"])
        app.add_api_route("/api/similar/{number}", self.similar)
        app.add_api_route("/api/near-duplicates", self.near_duplicates)
        app.add_api_route("/api/label", self.label, methods=["POST"])
        app.add_api_route("/thumbnail/{number}", self._files.thumbnail)
        app.add_api_route("/image/{number}", self._files.image)
        app.add_exception_handler(AnyHTTPException, refusal)
        app.add_exception_handler(InputError, refusal)
        app.add_exception_handler(RequestValidationError, refusal)
        return app

    # -- searching --------------------------------------------------------------------------------

    async def search(
        self, request: Request, box: str | None = None, top: int | None = None
    ) -> Response:
        """Search with a photo, the body of the request, or with the part of it in a box."""
        k, corners = self._k(top), corners_of(box)
        async with self._bodies.held(request) as data:
            with self._searches.taken():
                start = time.perf_counter()
                queries = await in_pool(self._queries, lambda: self._decoded(data, corners))
                return await self._found(queries, k, start)

    async def similar(self, number: int, top: int | None = None) -> Response:
        """Search with the stored descriptor of a photo."""
        k, start = self._k(top), time.perf_counter()
        self._files.check(number)
        rows = [int(rows[number]) for rows in self.photos.rows]
        with self._searches.taken():
            return await self._found([row if row >= 0 else None for row in rows], k, start)

    async def _found(
        self, queries: Sequence[Pixels | int | None], k: int, start: float
    ) -> Response:
        """Wait for the results of a search, and answer with them."""
        future = self.searcher.submit(searching.Query(queries, k))
        found = await asyncio.wrap_future(future)
        spent = round((time.perf_counter() - start) * 1e3, 1)
        return JSONResponse({"milliseconds": spent, "indexes": self._told(found)})

    def _decoded(self, data: bytes, box: Box | None) -> list[Pixels | int | None]:
        """Decode a photo as the network of each index wants it."""
        of_frame: dict[Preprocessing, Pixels] = {}
        for live in self.indexes:
            frame = live.frame
            if frame not in of_frame:
                of_frame[frame] = frame.cropped(self._pixels(data, box, frame))
        return [of_frame[live.frame] for live in self.indexes]

    def _pixels(self, data: bytes, box: Box | None, frame: Preprocessing) -> Pixels:
        decoded = self._queries.decode(
            data,
            longest_side=frame.longest_side,
            enlarge=frame.enlarge,
            box=box,
            max_pixels=self._limits.pixels,
        )
        if decoded.pixels is None:
            raise InputError(f"the photo cannot be used: {decoded.error}")
        return decoded.pixels

    def _told(self, found: Found) -> list[dict[str, Any]]:
        """Return the results of each index as JSON; None where it does not hold the photo."""
        told = []
        for live, numbers, near in zip(self.indexes, self.photos.numbers, found, strict=True):
            results = None
            if near is not None:
                ids, similarities = near.ids[0], near.similarities[0].tolist()
                results = [
                    {
                        "id": number,
                        "name": image.name,
                        "location": image.location,
                        "similarity": similarity,
                    }
                    for number, image, similarity in zip(
                        numbers[ids].tolist(),
                        live.index.images.take(ids),
                        similarities,
                        strict=True,
                    )
                ]
            told.append({"name": live.name, "results": results})
        return told

    async def near_duplicates(self, number: Annotated[Numbers, Query(alias="id")]) -> Response:
        """Find the near-duplicates among some photos of the first index."""
        rows = self.photos.rows[0]
        for each in number:
            self._files.check(each)
        held = [each for each in dict.fromkeys(number) if rows[each] >= 0]
        if not held:
            return JSONResponse({"groups": {}})
        with self._files.waiting.taken():
            groups = await in_pool(
                self._pictures,
                lambda: self._files.thumbnails.near_duplicates(self.indexes[0], rows[held], held),
            )
        return JSONResponse({"groups": dict(zip(map(str, held), groups, strict=True))})

    # -- labels -----------------------------------------------------------------------------------

    async def label(
        self,
        request: Request,
        right: Numbers = [],  # noqa: B006 # FastAPI copies it
        wrong: Numbers = [],  # noqa: B006
        cleared: Numbers = [],  # noqa: B006
        box: str | None = None,
        query: int | None = None,
    ) -> Response:
        """Keep which results of a query are right and wrong; the query is the body, or a photo."""
        corners = corners_of(box)
        for number in (*right, *wrong, *cleared, *([] if query is None else [query])):
            self._files.check(number)
        if {*right} & {*wrong}:
            raise HTTPException(400, "a result cannot be right and wrong")
        async with self._bodies.held(request) as body:
            with self._files.files.taken():
                told = await in_pool(
                    self._pictures,
                    lambda: self._label(body, query, corners, right, wrong, cleared),
                )
        return JSONResponse(told)

    def _label(
        self,
        body: bytes,
        query: int | None,
        box: Box | None,
        right: Sequence[int],
        wrong: Sequence[int],
        cleared: Sequence[int],
    ) -> dict[str, Any]:
        """Add the labels of a query to the labelled set, and return what there is of it."""
        data = body if query is None else self._files.content(query)
        # Nothing is kept that cannot be measured: it is decoded as a search decodes it.
        decoded = self._pictures.decode(
            data, longest_side=64, box=box, max_pixels=self._limits.pixels
        )
        if decoded.pixels is None:
            raise InputError(f"the photo cannot be used: {decoded.error}")
        labels = self._labelled.add(
            data,
            None if box is None else stored_box_of(data, box),
            right=map(self._files.content, right),
            wrong=map(self._files.content, wrong),
            cleared=map(self._files.content, cleared),
        )
        return {
            "queries": len(labels.queries),
            "images": len(labels.images),
            "folder": self._labelled.images.uri,
            "ground_truth": self._labelled.ground_truth,
        }

    # -- arguments --------------------------------------------------------------------------------

    def _k(self, top: int | None) -> int:
        k = self._limits.top if top is None else top
        if not 1 <= k <= self._limits.most:
            raise HTTPException(400, f"top = {k}: choose from 1 to {self._limits.most}")
        return k
