"""`amalgam serve --engine ray://…`: the server without an engine of its own, in front of those of `amalgam engine`."""

import asyncio
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any
from uuid import uuid4

from amalgam.cli.consoles import on_stderr
from amalgam.cli.serve import CommandLine, listen, serve_until_stopped
from amalgam.cli.tls import tls_context
from amalgam.cli.vllm_environment import unheeded
from amalgam.engine.protocol import Engine
from amalgam.errors.remote import EnginesOfAnotherModel
from amalgam.errors.serving import FlagRefused
from amalgam.settings import Settings, settle


def run_front(settings: Settings, model: str | None, served_model_name: str | None, flags: list[str]) -> None:
    """Everything between the command line and uvicorn.

    Raises:
        FlagRefused: what is the engine's to be told.
        RayMissing, EngineAddressInvalid, EnginesUnreachable, EnginesOfAnotherModel: see there.
    """
    from amalgam.engine.remote.app import address_of, engine_handle, first_facts, join, losses, prepare_ray
    from amalgam.engine.remote.remote_engine import RemoteEngine
    from amalgam.store.base_model import base_spec
    from amalgam.wiring.parts import ENGINE_START_TIMEOUT_S

    began = time.monotonic()
    if flags or served_model_name is not None:
        raise FlagRefused((flags or ["--served-model-name"])[0], "give it to amalgam engine, which runs vLLM")
    for sentence in unheeded(os.environ):
        on_stderr().print(sentence, style="yellow", markup=False, soft_wrap=True)
    address = address_of(settings.engine.engine_address)
    folder = base_folder(settings, model)
    tls_context(settings.tls)
    listener = listen(settings)
    prepare_ray(os.environ, settings.ray_token)
    join(address)
    settle(os.environ, settings)
    handle = engine_handle(address)
    with on_stderr().status("Waiting for a replica of the engine"):
        facts = asyncio.run(first_facts(handle, address, ENGINE_START_TIMEOUT_S))
    if base_spec(folder, facts.names[0], facts.max_lora_rank).fingerprint != facts.fingerprint:
        raise EnginesOfAnotherModel(str(folder), facts.names)
    args = Namespace(
        model=str(folder),
        served_model_name=list(facts.names),
        max_lora_rank=facts.max_lora_rank,
        max_loras=1,
        max_cpu_loras=None,
        max_num_seqs=None,
        max_model_len=facts.max_model_len,
        adapts_experts=facts.adapts_experts,
        enable_tower_connector_lora=facts.adapts_towers,
        language_model_only=not facts.reads_media,
    )

    def make_engine(state: Any) -> Engine:
        return RemoteEngine(handle, facts, losses(), uuid4().hex)

    line = CommandLine(settings, args, {})
    serve_until_stopped(line, listener, began, is_demo=model is None, engine_factory=make_engine)


def base_folder(settings: Settings, model: str | None) -> Path:
    """The folder of the base model; without ``model`` that of the demo model, converted now if it was not yet."""
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.store.hub import local_model

    if model is not None:
        return local_model(model)
    with on_stderr().status("Preparing the demo model") as status:
        return ensure_base_model(settings.storage.cache_dir, lambda text: status.update(text))
