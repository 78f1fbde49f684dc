"""The open API, put together: SensorThings, the routers of the other faces, the contract and its reference page."""

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from api.openapi import complete
from api.reference import reference_page
from api.sensorthings.errors import body, message_of, status_of
from api.sensorthings.requests import ROOT
from api.sensorthings.requirements import server_settings
from api.sensorthings.service import SensorThings
from citylab import __version__
from citylab.entities import ENTITY_TYPES, TASKING, EntityTypes, without
from citylab.errors import CitylabError, Unavailable
from citylab.ports import EntityWrites, Store

log = structlog.get_logger()


class Application(FastAPI):
    """FastAPI, but requests below `/v1.1` go straight to the service, past routing and middleware."""

    sensorthings: SensorThings
    types: EntityTypes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(ROOT) and path[len(ROOT) : len(ROOT) + 1] in {"", "/"}:
                return await self.sensorthings(scope, receive, send)
        return await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The contract: what the routers declare, and SensorThings from the entity table."""
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi(), self.types)
        return self.openapi_schema


def create_app(
    store: Store,
    writes: EntityWrites,
    *,
    public_url: str | None = None,
    page_limit: int = 100,
    tasking: bool = True,
    mqtt_endpoints: Sequence[str] = (),
    announced: bool = True,
    routers: Sequence[APIRouter] = (),
) -> Application:
    """Make the application; the store is open while it serves.

    public_url: the address that absolute links begin with, such as https://city.example; None takes the request's.
    page_limit: how many entities a page has when the request does not say ($top may ask for up to 10,000).
    tasking: whether it offers Part 2, Tasking, besides Part 1.
    mqtt_endpoints: addresses at which clients reach the MQTT broker, for SensorThings over MQTT; announced:
    whether what is created and changed is published there.
    """
    app = Application(
        title="Citylab",
        summary="A city's sensors under open standards.",
        version=__version__,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.types = ENTITY_TYPES if tasking else without(*TASKING)
    app.sensorthings = SensorThings(
        store,
        writes,
        public_url=public_url,
        page=page_limit,
        settings=server_settings(mqtt_endpoints, app.types, announced=announced),
        types=app.types,
    )
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "HEAD"], expose_headers=["*"]
    )
    app.add_exception_handler(CitylabError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    for router in routers:
        app.include_router(router)
    app.add_api_route(
        "/docs", lambda: HTMLResponse(reference_page(app.openapi())), include_in_schema=False, methods=["GET"]
    )
    return app


def _json(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(body(status, message), status, headers, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, CitylabError)
    headers = (
        {"Retry-After": str(max(1, round(error.retry_after)))} if isinstance(error, Unavailable) else None
    )
    return _json(status_of(error), message_of(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404 and message == "Not Found":
        message = f"there is nothing at {request.url.path}"
    return _json(error.status_code, message, dict(error.headers or {}))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = (
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()
    )
    return _json(400, "; ".join(faults))


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a request failed", method=request.method, path=request.url.path, exc_info=error)
    return _json(500, "an error of this service, which its log describes")
