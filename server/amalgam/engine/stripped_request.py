"""What vLLM's handlers are shown of a client's request beside its body: made anew, so that nothing else arrives.

They read a priority, a session, a rank and a format of load reports off headers, unchecked: a priority of seventy bits
is an error of theirs on every request, and leaves its request registered in the engine for good.
"""

from typing import Final

from starlette.requests import Request

from amalgam.engine.inner_scope import inner_scope

SHOWN_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
"""They name the trace that a request belongs to, where vLLM is told to write traces. Everything else that a client may
say of its request is in the body, whose fields are checked."""


def stripped_request(request: Request) -> Request:
    """``request`` without its headers but `SHOWN_HEADERS`, and without its query and its client.

    Its state is the same object, because vLLM leaves there what a request took; so is what tells that the client left.
    """
    headers = ((name, value) for name, value in request.scope["headers"] if name.lower() in SHOWN_HEADERS)
    scope = inner_scope(request.scope["app"], headers) | {"state": request.scope.setdefault("state", {})}
    return Request(scope, request.receive)
