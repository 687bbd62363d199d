"""Threads for work that blocks, a few for each kind, so that a slow kind holds up no other.

What is quick, such as loading an adapter or writing a page of metrics, stays with the event loop's own threads, which
nothing slow enters.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final, ParamSpec, TypeVar

FETCHES: Final = 2
"""So many run at a time, from hubs and folders elsewhere, which may be slow for long."""
UPLOADS: Final = 4
"""So many files are received, checked and stored at a time."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class WorkThreads:
    """Two kinds of work, each with threads of its own; use `opened`."""

    def __init__(self, fetches: ThreadPoolExecutor, uploads: ThreadPoolExecutor) -> None:
        self._fetches = fetches
        self._uploads = uploads

    @classmethod
    @contextmanager
    def opened(cls) -> "Iterator[WorkThreads]":
        """Ready while the block runs. What has begun goes on after it; what waits does not begin."""
        fetches = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        try:
            yield cls(fetches, uploads)
        finally:
            for pool in (fetches, uploads):
                pool.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """``work`` of something that lies elsewhere."""
        return await _run(self._fetches, work, *args, **kwargs)

    async def upload(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """``work`` on a new version's files."""
        return await _run(self._uploads, work, *args, **kwargs)


async def _run(pool: ThreadPoolExecutor, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run as `asyncio.to_thread` does, with the request's context for what is logged, in ``pool``."""
    context = copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: context.run(work, *args, **kwargs))
