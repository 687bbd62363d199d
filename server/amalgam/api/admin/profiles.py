"""Serving profiles on the admin plane: what a version's requests get beside what they say."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin.kit import PUBLISHES, READS, AdapterName, Body, Timestamp, VersionNumber, admin_router
from amalgam.api.state import services
from amalgam.domain.serving_profile import ProfileAction, ProfileOrigin, ServingProfile, VersionProfile

_PATH = "/adapters/{name}/versions/{number}/profile"
_EXAMPLE: dict[str, Any] = {"system_prompt": "You write SQL.", "sampling": {"temperature": 0.2}, "stop": [";"]}


class ProfileBody(ServingProfile):
    """A profile, and whether requests get it."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [_EXAMPLE]})

    active: bool = Field(default=True, description="whether requests get it")

    def profile(self) -> ServingProfile:
        """The profile alone."""
        return ServingProfile.model_validate(self.model_dump(exclude={"active"}))


class SwitchBody(Body):
    """Whether a profile is on."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"active": True}]})

    active: bool = Field(description="whether requests get it")


class ProfileChangeView(BaseModel):
    """One change of a profile."""

    revision: int = Field(description="counts the changes of this version's profile", examples=[1])
    action: ProfileAction = Field(examples=["set"])
    origin: ProfileOrigin = Field(description="folder: it came with the adapter's files; api: an administrator gave it")
    active: bool = Field(description="whether requests got it from then on", examples=[True])
    digest: str | None = Field(description="SHA-256 of the profile, in hex; null once it was deleted")
    profile: dict[str, Any] | None = Field(description="what was set", examples=[_EXAMPLE])
    created_at: Timestamp

    @classmethod
    def of(cls, state: VersionProfile) -> "ProfileChangeView":
        """The view of ``state``."""
        profile = state.profile
        return cls(
            digest=None if profile is None else profile.digest(),
            profile=None if profile is None else profile.model_dump(mode="json", exclude_defaults=True),
            created_at=state.created_at,
            **state.model_dump(include={"revision", "action", "origin", "active"}),
        )


class ProfileView(ProfileChangeView):
    """A version's profile as it is now, and how it came to be."""

    model: str = Field(description="the version", examples=["sql@1"])
    history: tuple[ProfileChangeView, ...] = Field(description="every change, the newest first; the last 100 are kept")

    @classmethod
    def shown(cls, model: str, states: tuple[VersionProfile, ...]) -> "ProfileView":
        """The view of a version's states, the newest first."""
        changes = tuple(map(ProfileChangeView.of, states))
        return cls(model=model, history=changes, **changes[0].model_dump())


def router() -> APIRouter:
    """The routes of profiles."""
    routes = admin_router("Adapters")

    async def shown(request: Request, name: str, number: int) -> ProfileView:
        return ProfileView.shown(f"{name}@{number}", await services(request).profiles.history(name, number))

    @routes.get(_PATH, dependencies=READS, summary="A version's serving profile, with its history")
    async def show_profile(request: Request, name: AdapterName, number: VersionNumber) -> ProfileView:
        return await shown(request, name, number)

    @routes.put(_PATH, dependencies=PUBLISHES, summary="Set a version's serving profile")
    async def put_profile(request: Request, name: AdapterName, number: VersionNumber, body: ProfileBody) -> ProfileView:
        await services(request).profiles.put(name, number, body.profile(), active=body.active)
        return await shown(request, name, number)

    @routes.patch(_PATH, dependencies=PUBLISHES, summary="Switch a version's serving profile on or off")
    async def switch_profile(
        request: Request, name: AdapterName, number: VersionNumber, body: SwitchBody
    ) -> ProfileView:
        await services(request).profiles.switch(name, number, active=body.active)
        return await shown(request, name, number)

    @routes.delete(_PATH, dependencies=PUBLISHES, summary="Take a version's serving profile away; its history stays")
    async def delete_profile(request: Request, name: AdapterName, number: VersionNumber) -> ProfileView:
        await services(request).profiles.delete(name, number)
        return await shown(request, name, number)

    return routes
