"""No flag of vLLM's own server is taken without effect: each is passed on, a setting, always so, or refused by name."""

import gc
import socket
from dataclasses import fields
from pathlib import Path

import pytest

from amalgam.cli import serve, vllm_flags
from amalgam.cli.serve import CommandLine, listen
from amalgam.cli.vllm_flags import ALWAYS, OURS, READ_BY_VLLM, REFUSED, SETTINGS
from amalgam.errors import AmalgamError
from amalgam.errors.requests import PortTaken, UnsafeBinding
from amalgam.errors.serving import FlagRefused, LoraModuleUnusable
from amalgam.settings import Settings, setting_fields
from tests.adapter_factory import write_lora

pytest.importorskip("vllm")
CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(CONFIG)
    return str(tmp_path)


def read(model: str, *flags: str, **settings: object) -> CommandLine:
    return serve.command_line(Settings(**settings), model, "base", list(flags), is_demo=False)


def front_arguments() -> set[str]:
    """Every argument of vLLM's front end, and those that its parser adds beside the engine's."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    every = {action.dest for action in make_arg_parser(FlexibleArgumentParser())._actions} - {"help"}
    engine = {field.name for field in fields(AsyncEngineArgs)}
    return {field.name for field in fields(FrontendArgs)} | (every - engine)


def test_every_argument_of_vllms_front_end_has_one_place() -> None:
    """A release with a new argument fails here, so that somebody decides what becomes of it."""
    tables = [READ_BY_VLLM, set(SETTINGS), OURS, ALWAYS, set(REFUSED)]
    assert sum(map(len, tables)) == len(set().union(*tables)), "an argument has two places"
    of_the_engine = {"model", "reasoning_parser_plugin", "enable_lora"}
    assert set(vllm_flags.known()) - of_the_engine == front_arguments()


def test_settings_that_flags_set_exist() -> None:
    assert set(SETTINGS.values()) <= setting_fields().keys()


FLAGS = {
    "headless": ["--headless"],
    "api_server_count": ["--api-server-count", "2"],
    "grpc": ["--grpc"],
    "uds": ["--uds", "/tmp/x.sock"],
    "uvicorn_log_level": ["--uvicorn-log-level", "debug"],
    "allow_credentials": ["--allow-credentials"],
    "allowed_methods": ["--allowed-methods", '["GET"]'],
    "allowed_headers": ["--allowed-headers", '["x"]'],
    "enable_ssl_refresh": ["--enable-ssl-refresh"],
    "middleware": ["--middleware", "os.system"],
    "h11_max_header_count": ["--h11-max-header-count", "5"],
    "tool_parser_plugin": ["--tool-parser-plugin", "x.py"],
    "reasoning_parser_plugin": ["--reasoning-parser-plugin", "x.py"],
    "tokens_only": ["--tokens-only"],
    "enable_flash_late_interaction": ["--no-enable-flash-late-interaction"],
    "trust_request_chat_template": ["--trust-request-chat-template"],
    "enable_server_load_tracking": ["--enable-server-load-tracking"],
    "enable_offline_docs": ["--enable-offline-docs"],
    "model": ["--model", "other"],
    "model_tag": ["other"],
    "enable_lora": ["--no-enable-lora"],
    "disable_access_log_for_endpoints": ["--disable-access-log-for-endpoints", "/health"],
    "dp_supervisor_probe_timeout_s": ["--dp-supervisor-probe-timeout-s", "1"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_what_would_have_no_effect_is_refused_by_name_with_what_to_do_instead(model: str, name: str) -> None:
    with pytest.raises(FlagRefused) as caught:
        read(model, *FLAGS[name])
    assert FLAGS[name][0].replace("--no-", "--") in caught.value.message or name == "model_tag"
    assert REFUSED[name] in caught.value.message


def test_a_value_that_is_the_default_is_given_all_the_same(model: str) -> None:
    with pytest.raises(FlagRefused):
        read(model, "--api-server-count", "1")
    assert read(model, "--port", "8000", port=9000).settings.http.port == 8000


def test_a_file_of_flags_is_read_like_flags(model: str, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("root-path: /llm\nmax-model-len: 99\n")
    line = read(model, "--config", str(file))
    assert (line.settings.http.root_path, line.args.max_model_len) == ("/llm", 99)
    file.write_text("headless: true\n")
    with pytest.raises(FlagRefused):
        read(model, "--config", str(file))


def test_what_is_a_setting_here_is_set(model: str) -> None:
    origins = '["https://chat.example", "http://localhost:3000"]'
    line = read(
        model, "--host", "127.0.0.2", "--port", "81", "--root-path", "/llm/", "--allowed-origins", origins,
        "--ssl-keyfile", "k.pem", "--ssl-certfile", "c.pem", "--ssl-ca-certs", "ca.pem", "--ssl-cert-reqs", "2",
        "--ssl-ciphers", "HIGH", "--api-key", "ak_flag_one", "ak_flag_two", api_keys="ak_set", host="127.0.0.9",
    )  # fmt: skip
    settings = line.settings
    assert (settings.http.host, settings.http.port, settings.http.root_path) == ("127.0.0.2", 81, "/llm")
    assert settings.http.allowed_origins == ("https://chat.example", "http://localhost:3000")
    assert (settings.tls.ssl_keyfile, settings.tls.ssl_certfile, settings.tls.ssl_ca_certs) == (
        Path("k.pem"), Path("c.pem"), Path("ca.pem"),
    )  # fmt: skip
    assert (settings.tls.ssl_cert_reqs, settings.tls.ssl_ciphers) == (2, "HIGH")
    assert [key.get_secret_value() for key in settings.access.api_keys] == ["ak_set", "ak_flag_one", "ak_flag_two"]
    assert line.args.api_key is None
    assert "ak_flag" not in repr(line)


@pytest.mark.parametrize(
    "flags", [("--root-path", "llm"), ("--allowed-origins", '["chat.example/path"]'), ("--port", "70000")], ids=str
)
def test_a_value_that_no_setting_takes_is_refused_by_its_flag(model: str, flags: tuple[str, str]) -> None:
    with pytest.raises(FlagRefused, match=flags[0]):
        read(model, *flags)


def test_without_flags_nothing_is_changed(model: str) -> None:
    settings = Settings(port=81)
    assert serve.command_line(settings, model, "base", [], is_demo=False).settings is settings


def test_what_is_always_so_is_taken(model: str) -> None:
    read(model, "--enable-request-id-headers", "--disable-fastapi-docs", "--disable-uvicorn-access-log")


def test_what_vllm_reads_itself_reaches_it(model: str) -> None:
    args = read(
        model, "--enable-prompt-tokens-details", "--sse-keep-alive-interval", "7", "--response-role", "bot"
    ).args
    assert (args.enable_prompt_tokens_details, args.sse_keep_alive_interval, args.response_role) == (True, 7, "bot")


def test_more_names_of_the_base_model_are_refused(model: str) -> None:
    assert read(model, "--served-model-name", "one").args.served_model_name == ["one"]
    with pytest.raises(FlagRefused, match="served-model-name"):
        read(model, "--served-model-name", "one", "two")


def test_an_address_that_a_flag_gives_needs_keys_as_any_other(model: str) -> None:
    line = read(model, "--host", "0.0.0.0", "--port", "0", "--api-key", "ak_flag")
    with pytest.raises(UnsafeBinding):
        listen(line.settings)
    line = read(model, "--host", "0.0.0.0", "--port", "0", "--api-key", "ak_flag", admin_key="ak_root")
    assert line.settings.http.host == "0.0.0.0"


def test_a_taken_port_is_refused_and_no_socket_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(PortTaken):
            listen(Settings(port=taken.getsockname()[1]))
        # A socket that nobody closed is told of here, which fails the test.
        gc.collect()


def test_adapters_that_a_flag_names_become_sources(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_lora(tmp_path / "some dir" / "sql")
    monkeypatch.chdir(tmp_path)
    line = read(model, "--lora-modules", f"one={folder}", "two=some dir/../some dir/sql", "three=org/adapter")
    assert line.lora_modules == {
        "one": f"file://{str(folder).replace(' ', '%20')}",
        "two": f"file://{str(folder).replace(' ', '%20')}",
        "three": "hf://org/adapter",
    }
    assert set(line.settings.adapters.source_roots) == {folder}
    assert line.args.lora_modules is None, "vLLM would load them unchecked, beside the registry"
    line = read(model, "--lora-modules", f'{{"name": "json", "path": "{folder}", "base_model_name": "x"}}')
    assert list(line.lora_modules) == ["json"]


@pytest.mark.parametrize("flag", ["a=/no/such/folder", "a=./no-such", "a=no-such-folder", "a=/etc/passwd"])
def test_an_adapter_that_is_not_there_is_said_before_anything_starts(model: str, flag: str) -> None:
    with pytest.raises(LoraModuleUnusable, match="'a'"):
        read(model, "--lora-modules", flag)


def test_a_name_given_twice_is_refused(model: str, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "sql")
    with pytest.raises(LoraModuleUnusable, match="twice"):
        read(model, "--lora-modules", f"a={folder}", f"a={folder}")


def test_every_refusal_ends_in_a_sentence() -> None:
    errors: list[AmalgamError] = [FlagRefused(f"--{name}", instead) for name, instead in REFUSED.items()]
    assert all(error.message.endswith(".") and " here: " in error.message for error in errors)
