"""What a new core has to give before the server is called ready: a token of the base model, and one of an adapter.

A kernel that a platform lacks is often found out by the first step that needs it, which would be a client's; and the
core would die over it again and again.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Final

from amalgam.engine.finite_answers import is_answer_finite
from amalgam.engine.protocol import LoadableVersion
from amalgam.engine.vllm_client import lora_request
from amalgam.errors.engine import AdapterNotProven, BaseNotFinite

PROBE_ID: Final = (1 << 31) - 1
"""The adapter that is tried at the start has this LoRA id; the registry begins at 1 and comes nowhere near."""
_FIRST_ANSWER_S: Final = 300.0
"""A first token is waited for at most so long: kernels may be compiled for it."""


Proof = Callable[[], AbstractContextManager[Path | None]]
"""It gives the folder of an adapter for the time of a block; None where there can be none."""


def no_proof() -> AbstractContextManager[None]:
    """No proof, for an engine that is tried with the base model alone."""
    return nullcontext()


async def prove_base(client: Any, name: str, is_unclean: Callable[[], bool]) -> None:
    """Raise where the base model does not give one finite token in time.

    Args:
        client: a new AsyncLLM.
        name: of the base model.
        is_unclean: whether values that are not finite were found.
    """
    if not await _answers(client, name, None, is_unclean):
        raise BaseNotFinite(name)


async def prove_adapter(client: Any, proof: Proof, is_unclean: Callable[[], bool]) -> None:
    """Raise where an adapter cannot be taken up, or does not give one finite token in time; it is let go again.

    Args:
        client: a new AsyncLLM.
        proof: gives the folder of an adapter that fits the base model.
        is_unclean: as in `prove_base`.

    Raises:
        AdapterNotProven: it says what failed.
    """
    with ExitStack() as stack:
        folder = await asyncio.to_thread(stack.enter_context, proof())
        if folder is not None:
            await _prove(client, folder, is_unclean)


async def _prove(client: Any, folder: Path, is_unclean: Callable[[], bool]) -> None:
    version = LoadableVersion("start-proof@1", PROBE_ID, folder)
    request = lora_request(version)
    try:
        await client.add_lora(request)
        is_finite = await _answers(client, version.engine_name, request, is_unclean)
        await client.remove_lora(PROBE_ID)
    except Exception as error:
        raise AdapterNotProven(f"{type(error).__name__}: {error}") from error
    if not is_finite:
        raise AdapterNotProven("its answer is not finite")


async def _answers(client: Any, name: str, request: Any, is_unclean: Callable[[], bool]) -> bool:
    """Whether one finite token came; raises what the core died of, or TimeoutError."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        async with asyncio.timeout(_FIRST_ANSWER_S):
            return await is_answer_finite(client, name, request)
    except EngineDeadError:
        if not is_unclean():
            raise
        return False
