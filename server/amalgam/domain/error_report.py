"""What a process says of an error to another process: the values of the error's class, without the class."""

from pydantic import BaseModel, ConfigDict, Field

from amalgam.errors import AmalgamError
from amalgam.errors.reported import ReportedError


class ErrorReport(BaseModel):
    """One error."""

    model_config = ConfigDict(frozen=True)

    code: str
    status: int = Field(ge=400, le=599, description="HTTP status the same error would have had in a request")
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: AmalgamError) -> "ErrorReport":
        """The report of ``error``."""
        return cls(code=error.code, status=error.status, message=error.message, param=error.param)

    def as_error(self) -> ReportedError:
        """The error again, to be raised here."""
        return ReportedError(self.message, code=self.code, status=self.status, param=self.param)
