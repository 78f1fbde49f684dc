"""The live page: `/` and `/static/...`, served from the folder that `python -m dashboards.build` writes."""

import re
from importlib.resources import files
from pathlib import Path

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

# Everything comes from here and nothing is written into the page: what a gateway sends cannot become a script.
_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_GUARDS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)+", re.ASCII)
_HASHED = re.compile(r"-[A-Z0-9]{8}\.")  # the bundler's names: another content has another name
_TYPES = {
    ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8", ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}  # fmt: skip
_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Citylab</title>
<h1>The live page has not been built</h1>
<p>Run <code>make setup</code> in the checkout, then load this page again.
The API itself works: see <a href="/docs">/docs</a> and <a href="/v1.1">/v1.1</a>.</p></html>
"""


def page_router(static: Path | None = None) -> APIRouter:
    """The routes of the live page.

    static: the folder with the built assets; by default the one in the installed distribution. It may be built, or
    built anew, while the application runs.
    """
    folder = static or Path(str(files("dashboards"))) / "static"
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        answer = await to_thread.run_sync(_file, folder, "index.html", request)
        return answer or HTMLResponse(_NOT_BUILT, 503, {**_GUARDS, "Cache-Control": "no-store"})

    @router.get("/static/{name}")
    async def asset(name: str, request: Request) -> Response:
        answer = await to_thread.run_sync(_file, folder, name, request) if _NAME.fullmatch(name) else None
        return answer or Response("There is no such file.", 404, _GUARDS, "text/plain")

    @router.get("/favicon.ico")
    async def icon(request: Request) -> Response:
        answer = await to_thread.run_sync(_file, folder, "icon.svg", request)
        return answer or Response(status_code=404, headers=_GUARDS)

    return router


def _file(folder: Path, name: str, request: Request) -> Response | None:
    """The file, compressed where the build has made it so and the client takes it; None when it is not there."""
    path = folder / name
    kind = _TYPES.get(path.suffix)
    if kind is None or not path.is_file():
        return None
    headers = {
        **_GUARDS,
        "Cache-Control": "public, max-age=31536000, immutable" if _HASHED.search(name) else "no-cache",
        "Vary": "Accept-Encoding",
    }
    packed = path.with_name(f"{name}.gz")
    if "gzip" in request.headers.get("accept-encoding", "") and packed.is_file():
        path = packed
        headers["Content-Encoding"] = "gzip"
    status = path.stat()
    tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}{"-gz" if path is packed else ""}"'
    headers["ETag"] = tag
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type=kind, stat_result=status)
