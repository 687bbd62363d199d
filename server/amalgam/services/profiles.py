"""Serving profiles: kept with a version, switched on and off, and put on the requests that the version answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.serving_profile import LEAST_TOP_P, ServingProfile, VersionProfile
from amalgam.engine.protocol import CallProfile, Endpoint, OwnTemplate
from amalgam.errors.findings import Finding
from amalgam.errors.profiles import ProfileNotFound
from amalgam.errors.requests import FieldRefused
from amalgam.registry.profiles import ProfileRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.template_link import TemplateLink

_CONVERSATIONS: Final[frozenset[Endpoint]] = frozenset(
    {"chat_completions", "responses", "messages", "count_tokens", "tokenize"}
)
_CHAT: Final = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
_FIELDS: Final[Mapping[Endpoint, Mapping[str, str]]] = {
    "chat_completions": {name: name for name in _CHAT} | {"max_tokens": "max_completion_tokens", "stop": "stop"},
    "responses": {name: name for name in _CHAT} | {"max_tokens": "max_output_tokens", "stop": "stop"},
    "messages": {name: name for name in _CHAT[:3]} | {"stop": "stop_sequences"},
}
"""By endpoint, it tells where each default goes; the others generate nothing."""
_UNSAID: Final = _CHAT[3:]
"""Anthropic's dialect has no fields for these. It has always a ``max_tokens``."""
_SYSTEM_ROLES: Final = frozenset({"system", "developer"})
_GREEDY: Final = 1e-5
"""From this temperature on vLLM draws nothing, and refuses several choices that would all be one."""


@dataclass(frozen=True, slots=True)
class LinkedTemplate(OwnTemplate):
    """One version's template, on the line to the process that renders it."""

    model: str
    text: str
    link: TemplateLink
    client: str

    async def content_format(self) -> Literal["string", "openai"]:
        """See `OwnTemplate`."""
        return await self.link.content_format(self.text, self.client)

    async def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, values: Mapping[str, Any]) -> str:
        """See `OwnTemplate`."""
        return await self.link.render(self.model, self.text, messages, tools, values, self.client)


class ProfileService:
    """What the admin plane does with profiles, and what requests get of them."""

    def __init__(self, registry: ProfileRegistry, catalog: Catalog, templates: TemplateLink) -> None:
        self._registry = registry
        self._catalog = catalog
        self._templates = templates

    async def history(self, name: str, number: int) -> tuple[VersionProfile, ...]:
        """The states of a version's profile, newest first.

        Raises:
            AdapterNotFound, VersionNotFound: no such version.
            ProfileNotFound: it never had one.
        """
        states = await self._registry.history(name, number)
        if not states:
            raise ProfileNotFound(f"{name}@{number}")
        return states

    async def check(self, profile: ServingProfile) -> None:
        """Have the profile's template, where it has one, render a conversation.

        Raises:
            ChatTemplateInvalid, TemplatesUnavailable.
        """
        if profile.chat_template is not None:
            await self._templates.content_format(profile.chat_template)

    async def put(self, name: str, number: int, profile: ServingProfile, *, active: bool) -> VersionProfile:
        """Make it the version's profile.

        Raises:
            AdapterNotFound, VersionNotFound: no such version.
            ChatTemplateInvalid, TemplatesUnavailable: see `check`.
        """
        await self.check(profile)
        return await self._changed(await self._registry.put(name, number, profile, active=active))

    async def judge(self, profile: ServingProfile | None, *, is_wanted: bool) -> list[Finding]:
        """What is to be said of a profile that came with an adapter's files; one that is to be used has to work.

        Args:
            profile: None where they say nothing of it.
            is_wanted: Whether requests are to get it.

        Raises:
            FieldRefused: there is none to be used.
            ChatTemplateInvalid, TemplatesUnavailable: see `check`.
        """
        if profile is None:
            if is_wanted:
                raise FieldRefused("use_profile", "asks for a serving profile, and the files bring none; leave it out")
            return []
        if is_wanted:
            await self.check(profile)
            return []
        message = "How the adapter wants to be asked is kept as its serving profile, which is off. Switch it on."
        return [Finding(code="profile_off", severity="warning", message=message)]

    async def found(self, version: AdapterVersion, profile: ServingProfile, *, active: bool) -> None:
        """Keep what came with the files of a version that is about to come into service."""
        await self._registry.put(
            version.name, version.number, profile, action="found", origin="folder", active=active
        )  # fmt: skip

    async def switch(self, name: str, number: int, *, active: bool) -> VersionProfile:
        """Have requests get the version's profile, or not.

        Raises:
            AdapterNotFound, VersionNotFound, ProfileNotFound: there is none.
            ChatTemplateInvalid, TemplatesUnavailable: see `check`; nothing is checked on the way off.
        """
        if active:
            profile = (await self.history(name, number))[0].profile
            if profile is not None:
                await self.check(profile)
        return await self._changed(await self._registry.switch(name, number, active=active))

    async def delete(self, name: str, number: int) -> VersionProfile:
        """Take it away.

        Raises:
            AdapterNotFound, VersionNotFound, ProfileNotFound: there is none.
        """
        return await self._changed(await self._registry.delete(name, number))

    async def _changed(self, state: VersionProfile) -> VersionProfile:
        await self._catalog.refresh()
        return state

    async def applied(
        self, endpoint: Endpoint, body: Mapping[str, Any], client: str = ""
    ) -> tuple[dict[str, Any], CallProfile | None]:
        """A checked body with what the profile of its version adds, and what goes beside the body.

        Args:
            endpoint: which will answer.
            body: its ``model`` is an engine name. What it says itself stays.
            client: whose request it is; keys take turns at templates.
        """
        model: str = body["model"]
        is_said = endpoint in _CONVERSATIONS
        profile = await self._catalog.found(lambda: self._catalog.profile(model)) if is_said else None
        if profile is None or (endpoint == "tokenize" and "messages" not in body):
            return dict(body), None
        changed = _with_system(endpoint, dict(body), profile.system_prompt)
        changed |= _sampling(endpoint, body, profile)
        template: OwnTemplate | None = None
        if profile.chat_template is not None:
            template = LinkedTemplate(body["model"], profile.chat_template, self._templates, client)
        given = profile.sampling.given()
        unsaid: dict[str, Any] = (
            {name: given[name] for name in _UNSAID if name in given} if endpoint == "messages" else {}
        )
        return changed, CallProfile(template, unsaid) if template is not None or unsaid else None


def _with_system(endpoint: Endpoint, body: dict[str, Any], prompt: str | None) -> dict[str, Any]:
    """The system prompt in front of a conversation that has none, where the dialect has it."""
    said = body.get("input") if endpoint == "responses" else body.get("messages")
    messages = said if isinstance(said, list) else []
    field = {"responses": "instructions", "messages": "system", "count_tokens": "system"}.get(endpoint)
    has_one = any(isinstance(one, dict) and one.get("role") in _SYSTEM_ROLES for one in messages)
    if prompt is None or has_one or (field is not None and body.get(field)):
        return body
    if field is not None:
        return body | {field: prompt}
    return body | {"messages": [{"role": "system", "content": prompt}, *messages]}


def _sampling(endpoint: Endpoint, body: Mapping[str, Any], profile: ServingProfile) -> dict[str, Any]:
    """The defaults that the body leaves open, by the names of its dialect."""
    given: dict[str, Any] = dict(profile.sampling.given())
    if profile.stop:
        given["stop"] = list(profile.stop)
    if body.get("max_tokens") is not None or (body.get("min_tokens") or 0) > given.get("max_tokens", 0):
        given.pop("max_tokens", None)
    if (body.get("n") or 1) > 1 and given.get("temperature", 1) < _GREEDY:
        given.pop("temperature")
    if given.get("top_p") == 0:
        given["top_p"] = LEAST_TOP_P
    fields = _FIELDS.get(endpoint, {})
    return {fields[name]: value for name, value in given.items() if name in fields and body.get(fields[name]) is None}
