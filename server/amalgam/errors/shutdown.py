"""Errors of a server that stops."""

from amalgam.errors import Unavailable


class ServerStopping(Unavailable):
    """The server was told to stop: it takes no new request, and ends what takes longer than the limit.

    Next step: send it again, to another server or after ``Retry-After``.
    """

    code = "server_stopping"
    retry_after_s = 5.0

    def __init__(self) -> None:
        super().__init__("This server is stopping. Send the request again, to another one or in a while.")
