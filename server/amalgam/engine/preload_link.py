"""Asks the engine's worker to read an adapter beside its steps; see `cpu_lora_preload`."""

import asyncio
import json

from amalgam.engine.protocol import LoadableVersion


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
            reader, writer = await asyncio.open_unix_connection(self._where)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
        except OSError:
            return False
        if not line:
            return False
        if error := json.loads(line).get("error"):
            raise PreloadRefused(error)
        return True
