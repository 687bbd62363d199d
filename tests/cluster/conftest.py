"""One Ray on loopback for the session, with replicas of a fake engine."""

import importlib.util
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from amalgam.engine.remote.app import join, prepare_ray, ready_token
from amalgam.engine.remote.own_ray import own_ray
from tests.cluster.fronts import Cluster, Front, front

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ray with a token of its own, and two replicas."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; make test-cluster installs it.")
    store = tmp_path_factory.mktemp("cluster") / "store"
    store.mkdir()
    before = dict(os.environ)
    token = store / "ray_token"
    ready_token(token, "b" * 64)
    prepare_ray(os.environ, token)
    paths = os.pathsep.join([str(ROOT / "server"), str(ROOT), before.get("PYTHONPATH", "")])
    with own_ray(0, 8, {**os.environ, "PYTHONPATH": paths}) as started:
        join(started.address)
        import ray

        try:
            made = Cluster(started.address, store)
            made.deploy(2)
            yield made
        finally:
            ray.shutdown()
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(scope="session")
async def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """One front with eight adapters."""
    async with front(cluster, tmp_path_factory.mktemp("front")) as opened:
        for number in range(8):
            await opened.register(f"a{number}", number)
        yield opened
