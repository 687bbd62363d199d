"""Errors of the command line alone; no request is answered with them."""

from amalgam.errors import InvalidRequest


class InvalidUsage(InvalidRequest):
    """Words or options that a verb of the command line does not take.

    Next step: look at the verb's own help.
    """

    code = "invalid_usage"

    def __init__(self, reason: str, command: str | None) -> None:
        step = f" `{command} --help` says what it takes." if command else ""
        sentence = reason if reason.endswith("?") else f"{reason.rstrip('.')}."
        super().__init__(f"{sentence}{step}")


class FileUnusable(InvalidRequest):
    """A file or folder that the system does not let the command line read or write.

    Next step: check the path and its permissions.
    """

    code = "file_error"

    def __init__(self, path: str | None, reason: str) -> None:
        super().__init__(f"{path + ': ' if path else ''}{reason}. Check the path and its permissions.")


class NoAnswer(InvalidRequest):
    """No server answers at the address of ``--url``.

    Next step: check the address, or start the server.
    """

    code = "no_answer"
    param = "url"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"No answer from {url} ({reason}). Check --url, or start the server with `amalgam serve`.")


class NotAmalgam(InvalidRequest):
    """Something else than an Amalgam server answers at the address of ``--url``.

    Next step: check the address, and what stands before the server.
    """

    code = "not_amalgam"
    param = "url"

    def __init__(self, url: str) -> None:
        super().__init__(f"What answers at {url} is no Amalgam server. Check --url, and what stands before the server.")
