"""What a merge is asked, to see what it keeps of its inputs, and what it has to keep."""

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from amalgam.api.admin.kit import ID_PATTERN, NO_NUL, Body
from amalgam.domain.recipe import MAX_INPUTS
from amalgam.domain.skill_probe import MAX_PROMPTS
from amalgam.domain.skill_probe import MAX_TOKENS as PROBE_TOKENS


class ProbePromptBody(Body):
    """One prompt: a chat, or a text to continue."""

    messages: tuple[dict[str, Any], ...] | None = Field(default=None, description="a chat, as in a request")
    prompt: str | None = Field(default=None, pattern=NO_NUL, description="a text to continue, instead of messages")


Prompt = Annotated[str, Field(min_length=1, max_length=65_536, pattern=NO_NUL)] | ProbePromptBody


class ProbeBody(Body):
    """Prompts whose answers say what a merge keeps: its inputs answer them, and the merge reads the answers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"prompts": {"sql": ["How many users are there?"], "json": ["Text: … Shape: {…}"]}}]
        },
    )

    prompts: dict[
        Annotated[str, Field(min_length=1, max_length=256, pattern=NO_NUL)],
        Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MAX_PROMPTS)],
    ] = Field(
        default={},
        max_length=MAX_INPUTS,
        description="input, as the recipe names it -> what it is asked; a text alone is what a user says",
    )
    evaluation: str | None = Field(
        default=None,
        pattern=ID_PATTERN,
        description=f"evaluation whose first {MAX_PROMPTS} items are taken, of each task that is named like an input",
    )
    max_tokens: int = Field(default=64, ge=1, le=PROBE_TOKENS, description="longest answer, tokens", examples=[64])

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.prompts and self.evaluation is None:
            raise ValueError("give prompts, an evaluation, or both")
        return self


class RequireBody(Body):
    """What a merge has to be, to be published."""

    kept: float = Field(
        gt=0, le=1, allow_inf_nan=False, description="least share that is kept of every input", examples=[0.9]
    )
