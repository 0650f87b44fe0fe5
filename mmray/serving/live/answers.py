"""Arguments in URLs, constant answers, and errors as answers."""

import math
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import JSONResponse, Response

from mmray.system.arrays import Box


def corners_of(box: str | None) -> Box | None:
    """Read a box: left, top, right and bottom in pixels of the upright photo."""
    if box is None:
        return None
    try:
        left, top, right, bottom = (float(corner) for corner in box.split(","))
    except ValueError:
        left = right = top = bottom = math.nan
    if not (math.isfinite(left + top + right + bottom) and left < right and top < bottom):
        raise HTTPException(400, "box: give left,top,right,bottom in pixels of the upright photo")
    return left, top, right, bottom


def constant(content: str, kind: str) -> Callable[[], Any]:
    """Make a route that answers the same each time."""

    async def route() -> Response:
        return Response(content, media_type=kind)

    return route


async def refusal(request: Request, error: Exception) -> Response:
    """Answer an error with its sentence."""
    if isinstance(error, AnyHTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 400)
    return JSONResponse({"error": str(error)}, 400)
