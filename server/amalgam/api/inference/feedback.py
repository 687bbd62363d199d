"""`/v1/feedback`: what a client says about an answer that it got."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.access import CLIENT, caller_of
from amalgam.api.admin.kit import Timestamp
from amalgam.api.errors import ERRORS
from amalgam.api.fields.strict_json import StrictRoute
from amalgam.api.state import services
from amalgam.domain.feedback import MAX_ID_LENGTH, NAME_PATTERN, Feedback

FEEDBACK_PATH: Final = "/v1/feedback"
_Bool = Annotated[bool, Field(strict=True)]
_Number = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


class FeedbackBody(BaseModel):
    """What is said about an answer."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"id": "req-3f2a9c0b8d7e6f5a4b3c2d1e", "name": "thumb", "value": True}]},
    )

    id: str = Field(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="id of the answer: its header x-request-id, or the id in its body",
    )
    name: str = Field(pattern=NAME_PATTERN, description="what is judged, as thumb or score", examples=["thumb"])
    value: _Bool | _Number = Field(description="true or false, or a number from 0 to 1", examples=[True])


class FeedbackView(BaseModel):
    """What was said, as it is kept."""

    object: str = Field(default="feedback", examples=["feedback"])
    id: str = Field(description="id of the request that was answered", examples=["req-3f2a9c0b8d7e6f5a4b3c2d1e"])
    name: str = Field(examples=["thumb"])
    value: float = Field(examples=[1.0])
    created_at: Timestamp

    @classmethod
    def of(cls, said: Feedback) -> "FeedbackView":
        """The view of ``said``."""
        return cls(id=said.answer, name=said.name, value=said.value, created_at=said.created_at)


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(responses=ERRORS, dependencies=[Depends(CLIENT)], tags=["OpenAI plane"], route_class=StrictRoute)

    @routes.post(FEEDBACK_PATH, summary="Say how an answer was")
    async def give(request: Request, body: FeedbackBody) -> FeedbackView:
        """Take it once: the same again changes nothing, and another value is refused."""
        caller = caller_of(request)
        said, _ = await services(request).feedback.give(
            caller.tenant_id, caller.key_id, body.id, body.name, float(body.value)
        )
        return FeedbackView.of(said)

    return routes
