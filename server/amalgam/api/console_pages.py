"""The pages for people: files that are served as they are written, under a policy that lets in nothing else.

The pages hold no secret and ask the public API with the key that is typed into them, so they are open to everybody.
"""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from amalgam.api.access import OPEN
from amalgam.errors.http import RouteNotFound

FOLDER: Final = Path(__file__).resolve().parent.parent / "console"
POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""It allows no inline script, no inline style, and nothing from elsewhere; pictures may be written within pages."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for again each time, and answered by the ETag: an upgraded server leaves no old scripts in browsers.
    "Cache-Control": "no-cache",
}
EVERYBODY: Final = [Depends(OPEN)]


def router() -> APIRouter:
    """The console at ``/console/``, the API's document for people at ``/docs``, and where ``/`` leads."""
    routes = APIRouter(tags=["Console"], include_in_schema=False)
    files = StaticFiles(directory=FOLDER, html=True)

    @routes.get("/", dependencies=EVERYBODY)
    async def root(request: Request) -> Response:
        prefix = request.scope.get("root_path", "")
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{prefix}/console/", headers=HEADERS)
        places = {"console": "/console/", "api": "/v1", "document": "/openapi.json", "ready": "/readyz"}
        return JSONResponse({name: f"{prefix}{path}" for name, path in places.items()})

    @routes.post("/", dependencies=EVERYBODY)
    async def wrong_base() -> Response:
        # Of a client whose base URL leads here: it is told where the API is.
        raise RouteNotFound

    @routes.get("/docs", dependencies=EVERYBODY)
    async def docs(request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/console/docs.html", headers=HEADERS)

    @routes.get("/console", dependencies=EVERYBODY)
    async def without_slash(request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/console/", headers=HEADERS)

    @routes.get("/console/{path:path}", dependencies=EVERYBODY)
    async def page(request: Request, path: str) -> Response:
        try:
            response = await files.get_response(path or "index.html", request.scope)
        except HTTPException as error:
            raise RouteNotFound from error
        response.headers.update(HEADERS)
        return response

    return routes
