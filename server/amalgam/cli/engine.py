"""`amalgam engine`: engines in processes of their own, on Ray, for any number of servers in front of them."""

import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from amalgam.cli.consoles import on_stderr
from amalgam.cli.front import base_folder
from amalgam.cli.one_line import ended
from amalgam.cli.serve import base_names
from amalgam.engine.remote.replica import ReplicaOrder
from amalgam.engine.remote.serve_app import FACTORY
from amalgam.errors import AmalgamError
from amalgam.errors.serving import FlagRefused
from amalgam.settings import Settings, settle
from amalgam.settings.sources import OBJECT_STORE_PREFIXES, is_secret
from amalgam.store.adapter_store import AdapterStore

_INHERITED = ("VLLM_", "AMALGAM_", "HF_", "CUDA_", "OMP_", "NCCL_")
"""Replicas get variables whose names begin so from here: Ray's workers have the environment of their node."""


def engine(
    model: Annotated[
        str | None, typer.Argument(help="folder or hub id of the base model; without it: the demo model")
    ] = None,
    vllm_flags: Annotated[list[str] | None, typer.Argument(help="after --: any flag of vLLM's engine")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=1024, help="engines")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="a Ray that runs, as ray://host:6379; without it: one of its own")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of its own Ray, on loopback; 0 picks one")] = 6379,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of each engine; unset: 1 where Ray has any")] = None,
    store: Annotated[Path | None, typer.Option(help="folder of adapters, the same as the servers'")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="name of the base model in requests")] = None,
    config: Annotated[Path | None, typer.Option(help="file of settings, in TOML; variables win over it")] = None,
    generation: Annotated[str, typer.Option(help="any word; another one has all engines replaced, one by one")] = "",
) -> None:
    """Run engines that servers with --engine ask. On a Ray that runs it returns once they answer."""
    given: dict[str, Any] = {"store": store, "config": config}
    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    flags = list(vllm_flags or [])
    if model is not None and model.startswith("-"):
        flags, model = [model, *flags], None
    try:
        order = _order(settings, model, served_model_name, flags, None if ray else replicas, generation)
        with ExitStack() as stack:
            _run(stack, settings, order, replicas, ray, port, gpus)
    except AmalgamError as error:
        raise ended(error.code, error.message, 1) from None


def _order(
    settings: Settings, model: str | None, name: str | None, flags: Sequence[str], here: int | None, generation: str
) -> ReplicaOrder:
    """What each replica is; flags are looked at here, so that a wrong one is known at once.

    Args:
        here: how many are on this machine; None: other machines may have them, and fetch a model by its hub id.
    """
    _refuse(flags)
    settle(os.environ, settings)
    inherited = {key: value for key, value in os.environ.items() if key.startswith(_INHERITED)}
    variables = {key: value for key, value in inherited.items() if not is_secret(key)}
    variables |= store_variables(settings)
    # Ray would set it to the CPUs that it counts for the actor.
    variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (here or 1))))
    is_folder = here is not None or model is None or Path(model).is_dir()
    return ReplicaOrder(
        factory=FACTORY,
        model=str(base_folder(settings, model)) if is_folder else str(model),
        is_demo=model is None,
        served_names=(name,) if name is not None else tuple(base_names(model)),
        flags=tuple(flags),
        variables=variables,
        generation=generation,
    )


def store_variables(settings: Settings) -> dict[str, str]:
    """The store as every machine finds it: copies of a bucket lie in a folder of each one."""
    bucket, folder = settings.storage.bucket, settings.storage.store
    if bucket and Settings(store=bucket).storage.store == folder:
        return {"AMALGAM_STORE": bucket, "AMALGAM_BUCKET": bucket}
    return {"AMALGAM_STORE": str(folder.absolute())}


def _refuse(flags: Sequence[str]) -> None:
    """Raise FlagRefused for what has no effect on an engine: there is no HTTP here."""
    from amalgam.cli.vllm_flags import OURS, SETTINGS, given_flags, refuse_without_effect
    from amalgam.engine.vllm_arguments import serve_parser

    if not flags:
        return
    said = given_flags(serve_parser(), flags)
    refuse_without_effect(said)
    for argument in said:
        if argument in SETTINGS or argument in OURS:
            raise FlagRefused(f"--{argument.replace('_', '-')}", "give it to amalgam serve, which answers HTTP")


def _run(
    stack: ExitStack, settings: Settings, order: ReplicaOrder, replicas: int, ray: str | None, port: int,
    gpus: float | None,
) -> None:  # fmt: skip
    from amalgam.engine.remote.app import address_of, deploy, gpus_there, join, prepare_ray, ready_token
    from amalgam.engine.remote.own_ray import own_ray

    _end_on_signals()
    prepare_ray(os.environ, settings.ray_token)
    if ray is None:
        # For its owner alone, as the token in it.
        AdapterStore.open(settings.storage.store)
        ready_token(settings.ray_token, secrets.token_hex(32))
        # One more for a replica that takes the place of another.
        ours = stack.enter_context(own_ray(port, replicas + 1, environment_of_ray(os.environ, settings)))
        address = ours.address
    else:
        ours, address = None, address_of(ray)
    join(address)
    # Ray has put handlers of its own.
    _end_on_signals()
    each = (1.0 if gpus_there() else 0.0) if gpus is None else gpus
    with on_stderr().status(f"Starting {replicas} engine{'s' if replicas > 1 else ''}"):
        deploy(order, replicas, cpus=1.0, gpus=each, drain_s=settings.http.drain_timeout_s, busy=32)
    on_stderr().print(f"[green]Ready[/green]: amalgam serve --engine ray://{escape(address)}", soft_wrap=True)
    if ours is not None:
        ours.wait()


def environment_of_ray(environment: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Leave out what is secret, because every worker of Ray's has it, but what Ray, and engines at the bucket, need."""
    needed = ("RAY_AUTH_", *(OBJECT_STORE_PREFIXES if settings.storage.bucket else ()))
    return {name: value for name, value in environment.items() if name.startswith(needed) or not is_secret(name)}


def _end_on_signals() -> None:
    """Whatever this program does then, what it started is ended with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(0)
