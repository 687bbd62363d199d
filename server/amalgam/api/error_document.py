"""The error shape as the API's document describes it; what is really sent is made in `amalgam.api.responses`."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from amalgam.errors.findings import Finding


class ErrorContent(BaseModel):
    """OpenAI's four fields, and where they apply the findings and the request's id."""

    message: str = Field(description="what is wrong, with the values, and the next step")
    type: str
    param: str | None = Field(description="the request field at fault")
    code: str = Field(description="stable name; match on this")
    findings: tuple[Finding, ...] | None = Field(default=None, description="all of them, where an adapter was refused")
    request_id: str | None = Field(default=None, description="also the header x-request-id, and in the server's log")


class ErrorView(BaseModel):
    """Every error of every route."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "No adapter is named 'sqll'. GET /admin/v1/adapters lists what there is.",
                        "type": "invalid_request_error",
                        "param": "name",
                        "code": "adapter_not_found",
                        "request_id": "req-5f2b8c0d9a1e4b7c6d3f2a10",
                    }
                }
            ]
        }
    )

    error: ErrorContent


ERRORS: Final[dict[int | str, dict[str, Any]]] = {"default": {"model": ErrorView, "description": "Any error"}}
"""Of every route; it also keeps FastAPI's own 422, which is never sent, out of the document."""
