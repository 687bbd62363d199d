"""Experiments on aliases, and what clients say of an alias' answers, on the admin plane."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Request

from amalgam.api.admin.experiment_models import (
    ExperimentBody,
    ExperimentPageView,
    ExperimentView,
    OutcomesView,
    OutcomeView,
)
from amalgam.api.admin.in_scope import covered_page, scopes_of
from amalgam.api.admin.kit import PUBLISHES, READS, WHOLE_NAME, LongLimit, NameCursor, admin_router
from amalgam.api.state import services
from amalgam.domain.experiment import Experiment
from amalgam.domain.in_scope import HIDDEN

_Name = Annotated[str, Path(pattern=WHOLE_NAME, description="alias", examples=["support"])]
_PATH = "/aliases/{name}/experiment"


def _shown(request: Request) -> Callable[[str], str]:
    """What a key is told in the place of a model: the model, where it may know of it."""
    catalog, scopes = services(request).catalog, scopes_of(request)
    return lambda model: model if catalog.covers(model, scopes) else HIDDEN


async def _view(request: Request, experiment: Experiment) -> ExperimentView:
    """Intervals are searched for, a few milliseconds for each candidate: not on the event loop."""
    return await asyncio.to_thread(ExperimentView.of, experiment, _shown(request))


def router() -> APIRouter:
    """The routes."""
    routes = admin_router("Experiments")
    _add_writing(routes)
    _add_reading(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.put(_PATH, dependencies=PUBLISHES, summary="Have an alias carry an experiment")
    async def start(request: Request, name: _Name, body: ExperimentBody) -> ExperimentView:
        begun = await services(request).experiments.start(
            name, body.spec(), expected=body.revision, scopes=scopes_of(request)
        )
        return await _view(request, begun)

    @routes.delete(_PATH, dependencies=PUBLISHES, summary="Stop an experiment; the alias stays as it is")
    async def stop(request: Request, name: _Name) -> ExperimentView:
        return await _view(request, await services(request).experiments.stop(name))


def _add_reading(routes: APIRouter) -> None:
    @routes.get(_PATH, dependencies=READS, summary="The experiment of an alias, or its last one")
    async def show(request: Request, name: _Name) -> ExperimentView:
        return await _view(request, await services(request).experiments.newest(name))

    @routes.get("/experiments", dependencies=READS, summary="The newest experiment of each alias")
    async def list_experiments(
        request: Request, limit: LongLimit = 100, cursor: NameCursor = None
    ) -> ExperimentPageView:
        scopes, read = scopes_of(request), services(request).experiments.list
        is_shown = None if scopes.has_every_name else lambda experiment: scopes.name(experiment.alias)
        found, next_cursor = await covered_page(read, limit, cursor, is_shown, lambda experiment: experiment.alias)
        views = [await _view(request, one) for one in found]
        return ExperimentPageView(data=tuple(views), next_cursor=next_cursor)

    @routes.get("/aliases/{name}/outcomes", dependencies=READS, summary="What clients say of an alias' answers")
    async def outcomes(request: Request, name: _Name) -> OutcomesView:
        await services(request).aliases.get(name)
        sums, shown = await services(request).feedback.sums(name), _shown(request)
        return await asyncio.to_thread(lambda: OutcomesView(data=tuple(OutcomeView.of(one, shown) for one in sums)))
