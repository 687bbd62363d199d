"""How vLLM's client is built, and the few things of vLLM that are made for it."""

from argparse import Namespace
from typing import Any
from uuid import uuid4

from amalgam.engine.base_class import require_servable, without_torchvision
from amalgam.engine.cpu import patches
from amalgam.engine.cpu.fork_server import ForkServer
from amalgam.engine.cpu.preload import EXTENSION, PreloadLink
from amalgam.engine.protocol import LoadableVersion
from amalgam.engine.sound_rates import resample_with_what_there_is
from amalgam.engine.sound_samples import unpack_sounds_as_they_are
from amalgam.engine.sound_values import hear_numbers_alone
from amalgam.engine.spawned import SpawnedCore


def import_vllm() -> None:
    """Import what the engine is built from; takes seconds."""
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.v1.engine.async_llm  # noqa: F401

    resample_with_what_there_is()
    unpack_sounds_as_they_are()
    hear_numbers_alone()


def engine_config(args: Namespace) -> tuple[Any, Any]:
    """VLLM's arguments of an engine, and what it makes of them and of the base model's files; no weight is read.

    Raises:
        BaseTakesNoLora, BaseNotServable: it cannot be served here. Besides, whatever vLLM raises of its own.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs.from_cli_args(args)
    try:
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except ValueError as error:
        raise without_torchvision(args.model, error) or error from None
    require_servable(config)
    return engine_args, config


def build_client(args: Namespace, processes: ForkServer | SpawnedCore) -> Any:
    """Start the core process and connect to it; blocks until the model is loaded."""
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    if isinstance(processes, ForkServer):
        # Also when a core is started again: the fork server may have died with it.
        processes.start()
    processes.adopt_core()
    engine_args, config = engine_config(args)
    return AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )


async def listened_to(client: Any, args: Namespace) -> PreloadLink | None:
    """Where the worker reads adapters in parallel with its steps; None where it has not learned to, or is not alone."""
    if args.worker_extension_cls != EXTENSION or client.vllm_config.parallel_config.world_size > 1:
        return None
    where = f"\0amalgam-preload-{uuid4().hex}"
    await client.collective_rpc("listen_for_preloads", args=(where,))
    return PreloadLink(where)


def facts(client: Any) -> dict[str, Any]:
    """Fields of `EngineInfo` that vLLM decides; none before there is a client."""
    if client is None:
        return {}
    config = client.vllm_config
    found = {"sequences": config.scheduler_config.max_num_seqs}
    model = getattr(config, "model_config", None)
    return found if model is None else found | {"dtype": str(model.dtype).removeprefix("torch.")}


def lora_request(version: LoadableVersion) -> Any:
    """The version as vLLM names it."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=version.engine_name, lora_int_id=version.lora_id, lora_path=str(version.folder))


def refuse_all(client: Any) -> None:
    """End the requests that wait for a core which is lost, and refuse those that are on their way to it."""
    from vllm.v1.engine.exceptions import EngineDeadError

    patches.put("vllm.v1.engine.core_client:BackgroundResources.engine_dead", True, on=client.engine_core.resources)
    client.output_processor.propagate_error(EngineDeadError())
