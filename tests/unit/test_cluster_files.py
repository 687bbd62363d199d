"""The files of a cluster: Kubernetes' own types take them, Ray Serve's schema too, and what they name exists."""

import importlib.util
import re
import subprocess
import sys
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from amalgam.engine.remote.app import APPLICATION
from amalgam.engine.remote.serve_app import ServeArguments
from amalgam.settings import known_names
from amalgam.settings.groups import HttpSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
MODULES = {
    "apps/v1": "apps_v1",
    "autoscaling/v2": "autoscaling_v2",
    "networking.k8s.io/v1": "networking_v1",
    "policy/v1": "policy_v1",
    "v1": "core_v1",
}
"""Of lightkube's models, which are made from Kubernetes' own schema; by API version."""


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "cluster.yaml").read_text()))


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in documents() if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def ray_cluster() -> dict[str, Any]:
    cluster: dict[str, Any] = named("RayService", "amalgam-engines")["spec"]["rayClusterConfig"]
    return cluster


def pods() -> dict[str, dict[str, Any]]:
    """Templates of pods, by who makes them."""
    made = {one["metadata"]["name"]: one["spec"]["template"] for one in documents() if one["kind"] == "Deployment"}
    cluster = ray_cluster()
    return made | {
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }


def wrong_in(value: Any, kind: Any, where: str) -> list[str]:
    """What of ``value`` is not of the type ``kind``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        alternatives = [one for one in typing.get_args(kind) if one is not type(None)]
        found = [wrong_in(value, one, where) for one in alternatives]
        return min(found, key=len)
    origin = typing.get_origin(kind)
    if origin is list:
        if not isinstance(value, list):
            return [f"{where} is no list"]
        (inner,) = typing.get_args(kind)
        return [wrong for place, one in enumerate(value) for wrong in wrong_in(one, inner, f"{where}[{place}]")]
    if origin is dict:
        inner = typing.get_args(kind)[1]
        return [wrong for name, one in value.items() for wrong in wrong_in(one, inner, f"{where}.{name}")]
    if is_dataclass(kind):
        return wrong_in_object(value, kind, where)
    wanted = {int: int, str: str, bool: bool}.get(kind)
    return [] if wanted is None or type(value) is wanted else [f"{where} is no {wanted.__name__}: {value!r}"]


def wrong_in_object(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where} is no object"]
    hints = typing.get_type_hints(kind, vars(typing) | vars(import_module(kind.__module__)))
    required = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    wrong = [f"{where}.{name} is missing" for name in required - value.keys()]
    for name, given in value.items():
        known = name if name in hints else f"{name}_"
        if known not in hints:
            wrong.append(f"{where}.{name} is no field")
        else:
            wrong += wrong_in(given, hints[known], f"{where}.{name}")
    return wrong


def model(api_version: str, kind: str) -> Any:
    if importlib.util.find_spec("lightkube") is None:
        pytest.skip("lightkube-models is not installed")
    # The models take three names of the client that they are made for; plain dataclasses do here.
    stand_in: Any = types.ModuleType("lightkube.core.schema")
    stand_in.dataclass, stand_in.field, stand_in.DictMixin = dataclass, field, object
    sys.modules.setdefault("lightkube.core", types.ModuleType("lightkube.core"))
    sys.modules.setdefault("lightkube.core.schema", stand_in)
    return getattr(import_module(f"lightkube.models.{MODULES[api_version]}"), kind)


@pytest.mark.parametrize("place", range(len(documents())), ids=lambda place: documents()[place]["kind"])
def test_kubernetes_types_take_every_object(place: int) -> None:
    given = documents()[place]
    if given["apiVersion"] == "ray.io/v1":
        pytest.skip("its pods are checked apart, and what Ray Serve is told")
    kind = model(given["apiVersion"], given["kind"])
    body = {name: value for name, value in given.items() if name not in ("apiVersion", "kind")}
    assert wrong_in(body, kind, given["kind"]) == []


@pytest.mark.parametrize("name", pods())
def test_kubernetes_types_take_every_pod(name: str) -> None:
    assert wrong_in(pods()[name], model("v1", "PodTemplateSpec"), name) == []


def test_the_check_of_types_finds_what_is_wrong() -> None:
    broken = {"spec": {"containers": [{"name": "x", "imagee": "y", "ports": [{"containerPort": "80"}]}]}}
    assert wrong_in(broken, model("v1", "PodTemplateSpec"), "pod") == [
        "pod.spec.containers[0].imagee is no field",
        "pod.spec.containers[0].ports[0].containerPort is no int: '80'",
    ]


def served() -> dict[str, dict[str, Any]]:
    """What Ray Serve is told, by file."""
    kubernetes = named("RayService", "amalgam-engines")["spec"]["serveConfigV2"]
    return {
        "serve.yaml": yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text()),
        "cluster.yaml": yaml.safe_load(kubernetes),
    }


@pytest.mark.parametrize("file", served())
def test_ray_serve_takes_what_it_is_told_and_fronts_find_it(file: str) -> None:
    (application,) = served()[file]["applications"]
    assert (application["name"], served()[file]["proxy_location"]) == (APPLICATION, "Disabled")
    module, _, function = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), function))
    ServeArguments.model_validate(application["args"])
    if importlib.util.find_spec("ray") is not None:
        from ray.serve.schema import ServeDeploySchema

        ServeDeploySchema.model_validate(served()[file])


def test_every_setting_that_is_named_exists_and_what_is_secret_comes_from_outside() -> None:
    text = "".join((DEPLOY / name).read_text() for name in ("kubernetes/cluster.yaml", "compose/cluster.yaml"))
    settings = {f"AMALGAM_{name.upper()}" for name in known_names()}
    assert set(re.findall(r"AMALGAM_[A-Z_]+", text)) - {"AMALGAM_PORT"} <= settings
    for name, pod in pods().items():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                is_secret = re.search("KEY|TOKEN|DATABASE_URL", variable["name"]) is not None
                assert is_secret == ("secretKeyRef" in variable.get("valueFrom", {})), (name, variable)


def test_who_ends_has_the_time_to_and_who_is_there_is_spread() -> None:
    front, engines = pods()["amalgam-front"]["spec"], pods()["engines"]["spec"]
    (application,) = served()["cluster.yaml"]["applications"]
    assert front["terminationGracePeriodSeconds"] > HttpSettings().drain_timeout_s
    assert engines["terminationGracePeriodSeconds"] > application["args"]["drain_s"]
    assert front["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/readyz"
    scaler = named("HorizontalPodAutoscaler", "amalgam-front")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "amalgam-front"
    assert "replicas" not in named("Deployment", "amalgam-front")["spec"], "two would set it"
    (group,) = ray_cluster()["workerGroupSpecs"]
    counted = float(group["rayStartParams"]["num-cpus"])
    assert group["replicas"] * counted >= application["args"]["replicas"] * application["args"]["cpus"]


def test_labels_that_select_are_labels_of_pods() -> None:
    labels = [pod["metadata"]["labels"] for pod in pods().values()]
    for one in documents():
        selector = one["spec"].get("podSelector", one["spec"].get("selector", {})) if "spec" in one else {}
        wanted = selector.get("matchLabels", selector)
        if wanted:
            assert any(wanted.items() <= given.items() for given in labels), one["metadata"]


def test_compose_opens_nothing_to_other_machines_and_keeps_the_profile() -> None:
    services = yaml.safe_load((DEPLOY / "compose" / "cluster.yaml").read_text())["services"]
    assert all(one["profiles"] == ["cluster"] for one in services.values())
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    fronts = [one for name, one in services.items() if name.startswith("front-")]
    assert all(one["environment"]["AMALGAM_ADMIN_KEY"].startswith("${") for one in fronts)
    assert not any("ADMIN_KEY" in name for name in services["engines"]["environment"])
    assert "DATABASE" not in " ".join(services["engines"]["environment"])


def test_the_script_of_nodes_wants_a_token_and_a_role() -> None:
    script = str(DEPLOY / "ray" / "node.sh")
    bare = subprocess.run([script, "head", "127.0.0.1"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert (bare.returncode, "without a token" in bare.stderr) == (1, True)
    given = {"PATH": "/usr/bin:/bin", "RAY_AUTH_TOKEN": "t"}
    wrong = subprocess.run([script, "tail", "127.0.0.1"], capture_output=True, text=True, env=given)
    assert (wrong.returncode, "head or join" in wrong.stderr) == (1, True)
