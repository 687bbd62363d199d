"""Engines on Ray Serve: started from the command line, and reached by a front's handle. Ray is imported when asked."""

import asyncio
import hashlib
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

from amalgam import __version__
from amalgam.engine.remote.messages import ReplicaInfo, ServedFacts
from amalgam.engine.remote.replica import INFO, EngineReplica, ReplicaOrder
from amalgam.errors.engine import EngineStartFailed
from amalgam.errors.remote import EngineAddressInvalid, EnginesUnreachable, RayMissing

APPLICATION: Final = "amalgam"
DEPLOYMENT: Final = "engine"
SCHEME: Final = "ray://"
_ROUTER: Final = "amalgam.engine.remote.affinity_router:AffinityRouter"
_LOOK_S: Final = 1.0
_MAX_ONGOING: Final = 1024
"""One replica has at most so many requests, waiting ones included. The front bounds them; beyond it Ray Serve would
hold them back."""


def address_of(engine: str) -> str:
    """Where Ray is, as ``host:port``.

    Raises:
        EngineAddressInvalid: ``engine`` is not of the form ``ray://host:port``.
    """
    host, _, port = engine.removeprefix(SCHEME).rpartition(":")
    if not engine.startswith(SCHEME) or not host or not port.isdecimal():
        raise EngineAddressInvalid(engine)
    return f"{host}:{port}"


def join(address: str, namespace: str = APPLICATION) -> None:
    """Make this process one of Ray's.

    Raises:
        RayMissing: Ray is not installed.
        EnginesUnreachable: nobody answers there, or not to this token.
    """
    try:
        import ray
    except ImportError:
        raise RayMissing from None
    try:
        ray.init(
            address=address, namespace=namespace, log_to_driver=False, configure_logging=False, logging_level="ERROR"
        )
    except Exception as error:
        # Ray has no class of its own for most of what can be wrong here.
        raise EnginesUnreachable(address, f"{type(error).__name__}: {error}") from None


def deploy(order: ReplicaOrder, replicas: int, *, cpus: float, gpus: float, drain_s: float, busy: int) -> None:
    """Have Ray Serve run ``replicas`` of the engine, and return when they answer.

    Called again with another number it starts or ends some; with another order it replaces all, one after the other.

    Args:
        order: what each of them is.
        replicas: how many.
        cpus: that Ray counts for each.
        gpus: that each gets.
        drain_s: longest wait for the requests of one that is to end, seconds.
        busy: see `AffinityRouter`.

    Raises:
        EngineStartFailed: a replica ended before it answered, and again when it was started once more.
    """
    from ray import serve

    bound = engines(order, replicas, cpus=cpus, gpus=gpus, drain_s=drain_s, busy=busy)
    serve.start(proxy_location="Disabled")
    try:
        serve.run(bound, name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise EngineStartFailed(_last_line(str(error))) from None


def engines(order: ReplicaOrder, replicas: int, *, cpus: float, gpus: float, drain_s: float, busy: int) -> Any:
    """What Ray Serve is to run: see `deploy`."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    router = RequestRouterConfig(
        request_router_class=_ROUTER,
        request_router_kwargs={"busy": busy},
        request_routing_stats_period_s=1.0,
        request_routing_stats_timeout_s=5.0,
    )
    deployment = serve.deployment(
        EngineReplica,
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        request_router_config=router,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_timeout_s=drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=2,
    )
    written = order.model_dump_json()
    # Without a version Ray Serve draws one in each call, and replaces all replicas where only their number changes.
    version = hashlib.sha256(f"{__version__} {written}".encode()).hexdigest()
    return deployment.options(version=version, _internal=True).bind(written)


def engine_handle(address: str) -> Any:
    """What a front asks the replicas by.

    Raises:
        EnginesUnreachable: no engines were started there.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return serve.get_deployment_handle(DEPLOYMENT, app_name=APPLICATION)
    except RayServeException as error:
        raise EnginesUnreachable(address, str(error)) from None


async def first_facts(handle: Any, address: str, timeout_s: float) -> ServedFacts:
    """What the first replica that answers serves.

    Raises:
        EnginesUnreachable: none did within ``timeout_s`` seconds.
    """
    why = "no replica is ready"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                said = await handle.broadcast("info").results_async(timeout_s=5, return_exceptions=True)
                infos: list[ReplicaInfo] = [INFO.validate_json(one) for one in said if isinstance(one, bytes)]
                if infos:
                    return infos[0].facts
                why = next((str(one) for one in said), why)
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise EnginesUnreachable(address, why) from None


def losses() -> tuple[type[BaseException], ...]:
    """What Ray raises where a replica is lost before, or while, it answers."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    return (
        ActorDiedError,
        ActorUnavailableError,
        ReplicaUnavailableError,
        DeploymentUnavailableError,
        TaskCancelledError,
    )


def prepare_ray(environment: MutableMapping[str, str], token_file: Path) -> None:
    """What Ray reads of the environment at its import, for every process that is to be one of Ray's.

    Args:
        environment: of this process.
        token_file: whoever cannot read it is refused by every port of Ray's, behind each of which code is run.
    """
    environment["RAY_AUTH_MODE"] = "token"
    if "RAY_AUTH_TOKEN" not in environment:
        environment.setdefault("RAY_AUTH_TOKEN_PATH", str(token_file))
    # Ray would run its workers at nice 15, behind whatever else the machine does.
    environment.setdefault("RAY_worker_niceness", "0")
    # Without it Ray moves off loopback by itself.
    environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1")


def ready_token(token_file: Path, new_token: str) -> None:
    """Write ``new_token`` for its owner alone, where there is no token yet."""
    try:
        descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(new_token)


def _last_line(text: str) -> str:
    """What was raised, of a trace."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "Ray Serve does not say why"


def gpus_there() -> bool:
    """Whether Ray counts any GPU."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))
