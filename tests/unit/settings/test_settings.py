"""Settings: every one by a variable and by the file, which wins, and what is refused."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from amalgam.errors.settings import SettingRefused, SettingsFileUnusable, SettingUnknown
from amalgam.settings import Settings, known_names, secret_names, setting_fields, settle, subsystems, variable
from amalgam.settings.sources import OTHER_VARIABLES

ROOT = Path(__file__).resolve().parents[3]
TABLES = {name: table for table, group in subsystems().items() for name in group.model_fields}
CANDIDATES = (
    *(
        "true",
        "false",
        "1",
        "2",
        "80",
        "3000",
        "3000000",
        "/some/where",
        "/llm",
        "https://chat.example",
        "s3://bucket/prefix",
        "ties",
        "delta",
    ),
    *("refuse", "json", "stock", "bfloat16", "spawned", "awake", "all"),
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AMALGAM_")]:
        monkeypatch.delenv(name)


def of_variables(given: dict[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, text in given.items():
            patch.setenv(name, text)
        return Settings()


def of_file(folder: Path, text: str) -> Settings:
    path = folder / "amalgam.toml"
    path.write_text(text)
    return Settings(config=path)


def value_of(settings: Settings, name: str) -> Any:
    return settings.values()[name]


def sample(name: str) -> tuple[str, Settings]:
    """A text that the setting takes and that is not its default."""
    for text in CANDIDATES:
        try:
            found = of_variables({variable(name): text})
        except SettingRefused:
            continue
        if value_of(found, name) != value_of(Settings(), name):
            return text, found
    raise AssertionError(f"no text for {name}")


def spellings(text: str) -> list[str]:
    """The ways to write the text in TOML."""
    typed = [text] if re.fullmatch(r"true|false|\d+", text) else []
    return [f'"{text}"', *typed]


@pytest.mark.parametrize("name", TABLES)
def test_a_setting_is_the_same_by_variable_and_by_file(name: str, tmp_path: Path) -> None:
    text, by_variable = sample(name)
    for spelling in spellings(text):
        by_file = of_file(tmp_path, f"[{TABLES[name]}]\n{name} = {spelling}\n")
        assert by_file.model_copy(update={"config": None}) == by_variable


@pytest.mark.parametrize("name", TABLES)
def test_a_process_that_is_started_has_the_same_settings_and_no_secret(name: str, tmp_path: Path) -> None:
    _, settings = sample(name)
    environment = {"PATH": "/bin", variable(name): "what was given before", "amalgam_port": "81"}
    settle(environment, settings)
    assert environment.pop("PATH") == "/bin"
    if name in secret_names():
        assert environment == {}
    else:
        assert of_variables(environment) == settings


@pytest.mark.parametrize("name", ["source_roots", "blend_methods", "api_keys"])
def test_what_commas_separate_may_be_a_list_in_the_file(name: str, tmp_path: Path) -> None:
    parts = {"source_roots": ["/a", "/b"], "blend_methods": ["ties", "linear"], "api_keys": ["ak_a", "ak_b"]}[name]
    listed = of_file(tmp_path, f"[{TABLES[name]}]\n{name} = {parts!r}\n")
    assert value_of(listed, name) == value_of(of_variables({variable(name): ", ".join(parts)}), name)


def test_the_command_line_wins_over_a_variable_and_a_variable_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "amalgam.toml"
    path.write_text("[http]\nport = 81\nhost = '::1'\nkeep_alive_s = 7\n[engine]\nmax_loras = 3\n")
    monkeypatch.setenv("AMALGAM_CONFIG", str(path))
    monkeypatch.setenv("AMALGAM_PORT", "82")
    monkeypatch.setenv("AMALGAM_HOST", "::2")
    settings = Settings(port=83)
    found = [value_of(settings, name) for name in ("port", "host", "keep_alive_s", "max_loras", "store")]
    assert found == [83, "::2", 7, 3, Path("adapters_store")]


def test_a_file_that_is_named_wins_over_the_variable_that_names_one(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("AMALGAM_CONFIG", str(tmp_path / "missing.toml"))
    assert value_of(of_file(tmp_path, "[http]\nport = 81\n"), "port") == 81
    with pytest.raises(SettingsFileUnusable, match=r"missing\.toml.*No such file"):
        Settings()


def test_the_example_file_is_read() -> None:
    path = ROOT / "deploy" / "amalgam.toml"
    example, plain = Settings(config=path).values(), Settings().values()
    changed = {name for name, value in example.items() if value != plain[name]}
    assert {"config", "database_url", "source_roots", "max_lora_rank", "log_format"} <= changed


def test_names_are_unique_over_all_tables() -> None:
    """Or one variable would mean two settings."""
    assert len(TABLES) == sum(len(group.model_fields) for group in subsystems().values())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("AMALGAM_MAX_LORA", "AMALGAM_MAX_LORAS"),
        ("AMALGAM_PROT", "AMALGAM_PORT"),
        ("AMALGAM_WORKER_THREAD", "AMALGAM_WORKER_THREADS"),
        ("amalgam_stor", "AMALGAM_STORE"),
        ("AMALGAM_ENGINE_MAX_LORAS", "AMALGAM_MAX_LORAS"),
        ("AMALGAM_CONFIGURATION", "AMALGAM_CONFIG"),
    ],
)
def test_an_unknown_variable_is_refused_with_near_names(name: str, near: str) -> None:
    with pytest.raises(SettingUnknown) as caught:
        of_variables({name: "1"})
    assert caught.value.code == "unknown_setting"
    assert name in caught.value.message
    assert near in caught.value.message


@pytest.mark.parametrize("name", ["AMALGAM_", "AMALGAM_XYZZY", "AMALGAM_URLS", "AMALGAM_TEST"])
def test_an_unknown_variable_without_near_names_is_refused_too(name: str) -> None:
    with pytest.raises(SettingUnknown, match=name):
        of_variables({name: "1"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("AMALGAM_URL", "http://127.0.0.1:8000"),
        ("AMALGAM_API_KEY", "ak_a"),
        ("AMALGAM_TEST_ANYTHING", "1"),
        ("AMALGAMATED", "1"),
        ("AMALGAM_SERVICE_HOST", "10.0.0.1"),
        ("AMALGAM_SERVICE_PORT_HTTP", "8000"),
        ("AMALGAM_PORT", "tcp://10.0.0.1:8000"),
        ("AMALGAM_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("AMALGAM_STAGING_PORT", "tcp://10.0.0.1:8000"),
        ("AMALGAM_STAGING_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
    ],
)
def test_variables_of_others_are_let_pass(name: str, text: str) -> None:
    assert of_variables({name: text}) == Settings()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[engine]\nmax_lora = 3", "[engine] max_loras"),
        ("[engine]\nport = 3", "[http] port"),
        ("[engines]\nmax_loras = 3", "[engine]"),
        ("max_loras = 3", "[engine] max_loras"),
        ("engine = 3", "[engine]"),
        ("config = 'other.toml'", "config"),
        ("[engine.more]\nmax_loras = 3", "[engine] more"),
        ("[[engine]]\nmax_loras = 3", "[engine]"),
    ],
)
def test_an_unknown_name_in_the_file_is_refused_with_near_names(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingUnknown) as caught:
        of_file(tmp_path, text)
    assert told in caught.value.message
    assert "amalgam.toml" in caught.value.message


@pytest.mark.parametrize(
    ("name", "toml", "allowed"),
    [
        ("port", "70000", "65535"),
        ("port", "true", "integer"),
        ("unknown_fields", '"drop"', "'take' or 'refuse'"),
        ("blend_methods", '["tise"]', "task_arithmetic"),
        ("blend_spaces", '["space"]', "'concat'"),
        ("max_lora_rank", "[1]", "integer"),
        ("root_path", '"no slash"', "pattern"),
        ("store", "{a = 1}", "path"),
    ],
)
def test_a_bad_value_names_its_place_and_what_is_allowed(name: str, toml: str, allowed: str, tmp_path: Path) -> None:
    with pytest.raises(SettingRefused) as caught:
        of_file(tmp_path, f"[{TABLES[name]}]\n{name} = {toml}\n")
    assert caught.value.code == "invalid_value"
    assert f"[{TABLES[name]}] {name}" in caught.value.message
    assert "amalgam.toml" in caught.value.message
    assert allowed in caught.value.message


def test_a_bad_variable_is_named_and_its_value_is_not_shown() -> None:
    with pytest.raises(SettingRefused, match=r"AMALGAM_PORT.*in the environment") as caught:
        of_variables({"AMALGAM_PORT": "hunter2"})
    assert "hunter2" not in caught.value.message
    with pytest.raises(SettingRefused, match=r"port.*on the command line"):
        Settings(port="x")


@pytest.mark.parametrize("content", [b"[http", b"\xff", b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "amalgam.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsFileUnusable, match=r"amalgam\.toml"):
        Settings(config=path)
    with pytest.raises(SettingsFileUnusable, match="directory"):
        Settings(config=tmp_path)


def test_every_variable_that_this_repository_names_is_a_setting_or_in_the_table() -> None:
    """Or a test, a tool or a deployment would set what ends the start."""
    known = set(map(variable, known_names())) | {"AMALGAM_TEST"}
    strange: dict[str, Path] = {}
    folders = ("server", "loadtests", "deploy", ".github", "tests")
    files = [ROOT / "Dockerfile", ROOT / "Makefile", *(path for one in folders for path in (ROOT / one).rglob("*"))]
    for path in files:
        if path.suffix not in ("", ".py", ".sh", ".yaml", ".yml", ".mjs", ".toml") or not path.is_file():
            continue
        if path.name in ("test_settings.py", "test_settings_refused.py"):  # they misspell
            continue
        for name in re.findall(r"\bAMALGAM_[A-Z0-9_]*[A-Z0-9]", path.read_text(errors="replace")):
            if name not in known and not any(name.startswith(other.rstrip("*")) for other in OTHER_VARIABLES):
                strange[name] = path
    assert strange == {}


def test_secrets_are_told_by_their_type() -> None:
    secret = {name for name, field in setting_fields().items() if SecretStr.__name__ in str(field.annotation)}
    assert secret | {"database_url"} == secret_names()


def test_an_address_as_the_store_is_the_bucket_and_the_folder_is_for_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMALGAM_STORE", "s3://models/team")
    monkeypatch.setenv("AMALGAM_CACHE_DIR", str(tmp_path))
    first = Settings()
    assert first.storage.bucket == "s3://models/team"
    assert tmp_path in first.storage.store.parents
    assert Settings(store="s3://models/other").storage.store != first.storage.store

    environment = dict(os.environ)
    settle(environment, first)
    monkeypatch.setenv("AMALGAM_BUCKET", environment["AMALGAM_BUCKET"])
    monkeypatch.setenv("AMALGAM_STORE", environment["AMALGAM_STORE"])
    assert Settings().storage == first.storage


@pytest.mark.parametrize("address", ["s3://", "s3://../up", "az://account", "s3://models/a b"])
def test_an_address_that_no_store_can_have_is_refused(address: str) -> None:
    with pytest.raises(SettingRefused):
        Settings(store=address)
