"""Reads adapters in the process that has the LoRA layers, while it takes steps: a thread that the HTTP process may ask.

vLLM's own way asks the engine's core, which answers between two steps of its loop; the request that waits for the
adapter then misses the step in between. Here a thread of the worker does what of a load depends on nothing that a step
changes (opening, checking and mapping the file), and keeps the result for the step that first needs the adapter.

One line of JSON per question and answer, over a Unix socket that is gone with its process (its name is Linux's abstract
kind). Only processes of the same user are answered. `PreloadLink` is the end that asks.
"""

import asyncio
import json
import logging
import os
import socket
import struct
import threading
from collections import OrderedDict
from typing import Any, Final

from amalgam.engine.adaptable import AskedWorker
from amalgam.engine.cpu import patches
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.internal import PreloadRefused

logger = logging.getLogger(__name__)

EXTENSION: Final = "amalgam.engine.cpu.preload.PreloadingWorker"
_CREDENTIALS: Final = struct.Struct("3i")
_LONGEST: Final = 1 << 16
KEPT: Final = 64
"""So many adapters are kept that are read and not yet used; more than that are read again in the step that needs them.
"""


class Preloads:
    """Adapters that are read and wait for their first step.

    Args:
        read: vLLM's reading of an adapter, of a LoRA request.
    """

    def __init__(self, read: Any) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._ready: OrderedDict[int, Any] = OrderedDict()

    def prepare(self, request: Any) -> None:
        """Read, and keep.

        Raises: what ``read`` does.
        """
        adapter = self._read(request)
        with self._lock:
            self._ready[request.lora_int_id] = adapter
            while len(self._ready) > KEPT:
                self._ready.popitem(last=False)

    def take(self, lora_id: int) -> Any | None:
        """What was read of the adapter; it is here no longer."""
        with self._lock:
            return self._ready.pop(lora_id, None)


class PreloadingWorker(AskedWorker):
    """What vLLM mixes into its worker where it has our LoRA."""

    def listen_for_preloads(self, where: str) -> None:
        """Answer questions at the socket address ``where``, and use what was read for them."""
        from amalgam.engine.cpu.loading import check_fit

        patches.apply("steps")
        manager = self.model_runner.lora_manager
        read, remove = manager._load_adapter, manager.remove_adapter

        def read_and_check(request: Any) -> Any:
            adapter = read(request)
            # What a step would find out in vLLM's way costs the engine here: it is asked for by a request already.
            check_fit(manager._adapter_manager, adapter)
            return adapter

        preloads = Preloads(read_and_check)

        def load(request: Any) -> Any:
            found = preloads.take(request.lora_int_id)
            return read(request) if found is None else found

        def drop(lora_id: int) -> Any:
            preloads.take(lora_id)
            return remove(lora_id)

        patches.put("vllm.lora.worker_manager:WorkerLoRAManager._load_adapter", load, on=manager)
        patches.put("vllm.lora.worker_manager:WorkerLoRAManager.remove_adapter", drop, on=manager)
        listen(where, preloads)


def listen(where: str, preloads: Preloads) -> socket.socket:
    """Answer, in a thread that ends with the process, until the socket is closed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(where)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    threading.Thread(target=_accept, args=(listener, preloads), name="adapter preloads", daemon=True).start()
    return listener


def _accept(listener: socket.socket, preloads: Preloads) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                _answer(connection, preloads)
            except Exception:
                # Who asked has left, or speaks another language; the next one may not, and is to be answered.
                logger.warning("preload_unanswered", exc_info=True)


def _answer(connection: socket.socket, preloads: Preloads) -> None:
    """One question and its answer."""
    from vllm.lora.request import LoRARequest

    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user != os.geteuid():
        return
    with connection.makefile("rwb") as stream:
        question = json.loads(stream.readline(_LONGEST))
        request = LoRARequest(question["name"], question["id"], question["folder"])
        answer = {}
        try:
            preloads.prepare(request)
        except Exception as error:
            logger.exception("preload_failed version=%s", request.lora_name)
            answer = {"error": f"{type(error).__name__}: {error}"}
        stream.write(json.dumps(answer).encode() + b"\n")


class PreloadLink:
    """The line to a worker that listens.

    Args:
        where: the socket's address, which stays readable.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    async def ask(self, version: LoadableVersion) -> bool:
        """Return when the worker has read the version, so that a step that needs it need not; False: it is not there.

        Raises:
            PreloadRefused: the worker cannot read it.
        """
        question = {"name": version.engine_name, "id": version.lora_id, "folder": str(version.folder)}
        try:
            reader, writer = await _connected(self.where)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
        except OSError as error:
            logger.warning("preload_skipped version=%s reason=%s", version.engine_name, error)
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
