"""How a version wants to be asked: its chat template, a system prompt, sampling defaults, and where answers end."""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

MAX_TEMPLATE: Final = 1 << 17
"""A chat template has at most so many characters."""
MAX_SYSTEM_PROMPT: Final = 1 << 16
"""A system prompt has at most so many characters."""
MAX_STOPS: Final = 16
MAX_STOP: Final = 256
"""A string that ends an answer has at most so many characters."""
LEAST_TOP_P: Final = 1e-9
"""A ``top_p`` of 0 means this, the likeliest token alone; vLLM takes what is above 0."""
MAX_CHANGES_KEPT: Final = 100
"""The history of one version's profile holds so many changes; older ones are forgotten."""

ProfileAction = Literal["found", "set", "on", "off", "delete"]
ProfileOrigin = Literal["folder", "api"]
_DIGEST_DOMAIN: Final = b"amalgam serving profile 1\n"


def _storable(text: str) -> str:
    """No database takes a NUL, and half a surrogate pair is no text."""
    if "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("must be text without NUL and without halves of surrogate pairs")
    return text


_Template = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE), AfterValidator(_storable)]
_Prompt = Annotated[str, Field(min_length=1, max_length=MAX_SYSTEM_PROMPT), AfterValidator(_storable)]
_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP), AfterValidator(_storable)]
_Penalty = Annotated[float, Strict(), Field(ge=-2, le=2, allow_inf_nan=False)]
_Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingDefaults(_Frozen):
    """What holds where a request does not say it, within the bounds of the request's own fields."""

    temperature: Annotated[float, Strict(), Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        default=None, examples=[0.2]
    )
    top_p: _Share | None = None
    top_k: Annotated[int, Strict(), Field(ge=-1, le=1 << 20)] | None = None
    min_p: _Share | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Strict(), Field(ge=0.01, le=10, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Strict(), Field(ge=1, le=1 << 20)] | None = Field(
        default=None, description="longest answer"
    )

    def given(self) -> dict[str, float | int]:
        """Those that are set, by name."""
        return self.model_dump(exclude_none=True)


class ServingProfile(_Frozen):
    """What an adapter's trainer had in mind; at least one part of it is set."""

    chat_template: _Template | None = Field(default=None, description="Jinja, as transformers reads it")
    system_prompt: _Prompt | None = Field(
        default=None, description="put in front of a conversation that has none", examples=["You write SQL."]
    )
    sampling: SamplingDefaults = SamplingDefaults()
    stop: tuple[_Stop, ...] = Field(
        default=(), max_length=MAX_STOPS, description="strings that end an answer", examples=[["</sql>"]]
    )

    @model_validator(mode="after")
    def _says_something(self) -> "ServingProfile":
        # What a body says besides, such as whether it is on, is no part of it.
        if not self.model_dump(exclude_defaults=True, include=set(ServingProfile.model_fields)):
            raise ValueError("give a chat_template, a system_prompt, sampling or stop")
        return self

    def digest(self) -> str:
        """SHA-256 of it in one spelling, in hex."""
        said: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        return hashlib.sha256(_DIGEST_DOMAIN + json.dumps(said, sort_keys=True).encode()).hexdigest()


class VersionProfile(BaseModel):
    """One state of a version's profile: the newest is what holds, those before are its history."""

    model_config = ConfigDict(frozen=True)

    version_id: int
    revision: int = Field(ge=1)
    """It counts the changes of this version's profile."""
    action: ProfileAction
    origin: ProfileOrigin
    profile: ServingProfile | None
    """It is None once it was deleted."""
    active: bool
    """It tells whether requests get it."""
    created_at: datetime
