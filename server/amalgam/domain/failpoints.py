"""Named places in the publish order where a test may stop the world; in service they do nothing."""

from typing import Final, Protocol


class Failpoints(Protocol):
    """Told of every step that a crash could cut off from the next; may raise or kill the process to stand for one."""

    def reach(self, name: str) -> None:
        """The step ``name`` is about to be left."""


class _NoFailpoints:
    def reach(self, name: str) -> None:
        """Go on."""


NO_FAILPOINTS: Final[Failpoints] = _NoFailpoints()
