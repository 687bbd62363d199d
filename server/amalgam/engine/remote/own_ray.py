"""A Ray of one's own on this machine's loopback, started as a program and ended by its process id."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from amalgam.errors.remote import RayEnded, RayNotStarted

logger = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
_START_S: Final = 120.0
_END_S: Final = 10.0
_OBJECTS_BYTES: Final = 100 << 20
"""Ray's own store of objects has this size: answers are small, and go by calls of actors."""


@dataclass(frozen=True)
class OwnRay:
    """A head node that was started here."""

    address: str
    process: "subprocess.Popen[bytes]"

    def wait(self) -> None:
        """Wait until it ends by itself, as it does where any of its processes does.

        Raises:
            RayEnded: always.
        """
        raise RayEnded(self.process.wait())


@contextmanager
def own_ray(port: int, cpus: float, environment: Mapping[str, str]) -> Iterator[OwnRay]:
    """Run a head node while the block runs.

    Args:
        port: that others join at; 0 picks one.
        cpus: that Ray may count on. It only counts them, so that there may be more than the machine has.
        environment: of Ray's processes, prepared by `app.prepare_ray`.

    Raises:
        RayNotStarted: it ended, or nobody answered in time.
    """
    chosen = port or _free_port()
    # Ray puts sockets there, whose paths may have no more than 107 letters.
    with TemporaryDirectory(prefix="amalgam-ray-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "start.log"
        with log.open("wb") as output:
            command = _command(chosen, cpus, folder)
            process = subprocess.Popen(  # noqa: S603  (a fixed program)
                command, stdout=output, stderr=output, env=dict(environment), start_new_session=True
            )
            try:
                _await_port(process, chosen, log)
                yield OwnRay(f"{LOOPBACK}:{chosen}", process)
            finally:
                _end(process)


def _command(port: int, cpus: float, folder: str) -> list[str]:
    """The command without the agents that the raylet would end over where they are slow to start."""
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", LOOPBACK, "--port", str(port)),
        *("--num-cpus", f"{cpus:g}", "--object-store-memory", str(_OBJECTS_BYTES)),
        *("--include-dashboard", "false", "--disable-usage-stats", "--temp-dir", folder),
        *("--no-monitor", "--include-log-monitor", "false"),
        # Else Ray keeps ten thousand ports for itself, others' among them; its proxy for clients has no other switch.
        *("--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"),
        *("--ray-client-server-port", str(_free_port())),
    ]


def _await_port(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise RayNotStarted(f"it ended with {process.returncode} ({lines[-1] if lines else 'and said nothing'})")
        if "--block" in log.read_text(errors="replace"):
            # Said last, when every process of the node is there.
            return
        time.sleep(0.1)
    raise RayNotStarted(f"port {port} does not answer after {_START_S:g} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The program ends what it started; what is left of its session is killed."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        logger.warning("ray_slow_to_end pid=%d", process.pid)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
