"""Asks the engine's worker to read an adapter beside its steps; see `cpu_lora_preload`."""

import asyncio
import json
import logging
import socket

from amalgam.engine.protocol import LoadableVersion

logger = logging.getLogger(__name__)


class PreloadRefused(Exception):
    """The worker cannot read the adapter; the text is vLLM's."""


class PreloadLink:
    """To a worker that listens.

    Args:
        where: the socket's address.
    """

    def __init__(self, where: str) -> None:
        self._where = where

    async def ask(self, version: LoadableVersion) -> bool:
        """Return when the worker has read the version, so that a step that needs it need not; False: it is not there.

        Raises:
            PreloadRefused: the worker cannot read it.
        """
        question = {"name": version.engine_name, "id": version.lora_id, "folder": str(version.folder)}
        try:
            reader, writer = await _connected(self._where)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
        except OSError as error:
            logger.warning("%s is read between two steps: %s", version.engine_name, error)
            return False
        if not line:
            return False
        if refused := json.loads(line).get("error"):
            raise PreloadRefused(refused)
        return True


async def _connected(where: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection by a socket of our own: uvloop, asked for one by its address, refuses Linux's abstract names."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_connect(ours, where)
        return await asyncio.open_unix_connection(sock=ours)
    except BaseException:
        ours.close()
        raise
