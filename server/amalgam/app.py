"""The application: routes, middleware, and the lifespan in which everything else is built and closed."""

import secrets
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from fastapi import FastAPI

from amalgam import __version__
from amalgam.api import console_pages, operations
from amalgam.api.access import unmarked
from amalgam.api.admin import (
    adapters,
    aliases,
    audit,
    evaluations,
    experiments,
    exports,
    lineage,
    lora_compat,
    merges,
    organization_usage,
    profiles,
    sweeps,
    tenants,
    usage,
)
from amalgam.api.admin import engine as engine_routes
from amalgam.api.admin.idempotency import IdempotencyKeys
from amalgam.api.auth import AuthMiddleware, KeyRing
from amalgam.api.errors import install_error_handlers
from amalgam.api.inference import batches, feedback, openai, own_key, stored_files
from amalgam.api.inference.batch_asker import BatchAsker
from amalgam.api.inference.inner_request import inner_ask
from amalgam.api.transport.cross_origin import CrossOrigin
from amalgam.api.transport.draining import Draining
from amalgam.api.transport.middleware import BodyLimit, HeaderLimit, RequestId
from amalgam.api.transport.observed import Observed
from amalgam.domain.clock import utc_now
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.cache_salts import CacheSalts
from amalgam.services.shutdown import Shutdown
from amalgam.settings import Settings
from amalgam.store.adapter_store import OBJECTS
from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.telemetry.build import build_versions
from amalgam.telemetry.metrics import Metrics
from amalgam.wiring.build import build
from amalgam.wiring.parts import EngineFactory, Parts, Start, embedded

_UPLOAD_ROUTES: Final = frozenset({"/admin/v1/adapters", "/admin/v1/adapters:validate", stored_files.FILES_PATH})
_PLAIN: Final = Start()


def create_app(
    settings: Settings, args: Namespace, start: Start = _PLAIN, *, engine_factory: EngineFactory | None = None
) -> FastAPI:
    """The application.

    Args:
        settings: of this process.
        args: vLLM's parsed serve arguments.
        start: what is asked for in addition to the settings.
        engine_factory: makes the engine from the application's state; None: the embedded vLLM.
    """
    metrics = Metrics(build=build_versions())
    checks = ArtifactChecks(settings.storage.store / OBJECTS)
    make_engine = engine_factory or embedded(settings, args, start, metrics, checks)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            engine, salts = make_engine(app.state), CacheSalts(secrets.token_bytes(32))
            parts = Parts(stack, settings, args, start, engine, metrics, checks, BackgroundLoops(metrics))
            ask = inner_ask(app, engine, salts, lambda: app.state.amalgam.profiles)
            app.state.amalgam = await build(parts, ask, BatchAsker(app, lambda: app.state.amalgam), salts)
            yield

    app = FastAPI(
        title="Amalgam",
        version=__version__,
        summary="Many LoRA adapters on one base model, and new ones merged while it serves",
        lifespan=lifespan,
        redirect_slashes=False,
        root_path=settings.http.root_path,
        # FastAPI's own pages load scripts from elsewhere; the document and its page are routes of ours, with markers.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    _add_routes(app, settings)
    shutdown = app.state.shutdown = Shutdown(settings.http.drain_timeout_s)
    _add_middleware(app, settings, metrics, shutdown)
    return app


def _add_routes(app: FastAPI, settings: Settings) -> None:
    """Add the routes in the order in which they are matched: what is asked most comes first."""
    modules = (
        *(own_key, stored_files, batches, feedback),
        *(lora_compat, adapters, aliases, experiments, merges, lineage, exports, engine_routes),
        *(profiles, evaluations, sweeps, tenants, audit, organization_usage, usage, operations),
    )
    routers = [openai.router(utc_now().timestamp()), *(module.router() for module in modules)]
    if settings.http.console:
        routers.append(console_pages.router())
    for router in routers:
        # As they are. `include_router` would make every route anew, with the fields of its models.
        app.router.routes.extend(router.routes)
    assert not unmarked(app.routes), f"routes that do not say whom they answer: {unmarked(app.routes)}"


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, shutdown: Shutdown) -> None:
    """Add the middleware from the inside out: what comes last sees a request first."""
    app.add_middleware(IdempotencyKeys)
    app.add_middleware(
        BodyLimit,
        json_bytes=settings.http.max_body_bytes,
        upload_bytes=settings.http.max_upload_bytes,
        upload_routes=_UPLOAD_ROUTES,
    )
    app.add_middleware(AuthMiddleware, keys=KeyRing.of(settings))
    app.add_middleware(HeaderLimit)
    app.add_middleware(Draining, shutdown=shutdown)
    app.add_middleware(
        Observed, metrics=metrics, endpoints=openai.ENDPOINT_PATHS, access_log=settings.logs.access_log_enabled
    )
    if settings.http.allowed_origins:
        app.add_middleware(CrossOrigin, origins=settings.http.allowed_origins)
    app.add_middleware(RequestId)
