"""What becomes of the flags of vLLM's own front end, given after ``--``: none is without effect in silence.

vLLM's engine and its handlers read most of them by themselves. Its HTTP server is not used here, so what it alone reads
is made a setting of ours, or is refused by name with what to do instead.
"""

import argparse
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from amalgam.errors.serving import FlagRefused, LoraModuleUnusable
from amalgam.errors.settings import SettingRefused
from amalgam.settings import Settings

READ_BY_VLLM: Final = frozenset({
    "anthropic_disabled_thinking_effort", "chat_template", "chat_template_content_format", "cohere_format", "config",
    "default_chat_template_kwargs", "enable_auto_tool_choice", "enable_force_include_usage", "enable_log_deltas",
    "enable_log_outputs", "enable_per_request_metrics", "enable_prompt_tokens_details",
    "exclude_tools_when_tool_choice_none", "fingerprint_mode", "fingerprint_value", "log_error_stack", "max_log_len",
    "response_role", "return_tokens_as_token_ids", "sse_keep_alive_interval", "tool_call_parser", "tool_server",
    "tool_strict_level",
})  # fmt: skip
"""They are read by vLLM's handlers and by its parser, which are what answers here."""

SETTINGS: Final[Mapping[str, str]] = {
    "host": "host",
    "port": "port",
    "root_path": "root_path",
    "allowed_origins": "allowed_origins",
    "ssl_keyfile": "ssl_keyfile",
    "ssl_certfile": "ssl_certfile",
    "ssl_ca_certs": "ssl_ca_certs",
    "ssl_cert_reqs": "ssl_cert_reqs",
    "ssl_ciphers": "ssl_ciphers",
}
"""They are taken as settings of ours, by field; a flag wins over a variable."""

OURS: Final = frozenset({"lora_modules", "api_key"})
"""They are taken too, each in a way of its own: adapters that are registered, and client keys beside those that are
set."""

ALWAYS: Final = frozenset({"enable_request_id_headers", "disable_fastapi_docs", "disable_uvicorn_access_log"})
"""They make no difference: every answer has its id, no page of documentation is served, uvicorn logs nothing."""

_ONE_PROCESS: Final = "one process serves HTTP here; leave it out"
_NO_SUCH_ROUTE: Final = "the routes that it is about are not served; leave it out"
_NO_GRPC: Final = "HTTP alone is spoken here; leave it out"
_KEYS_ARE_HEADERS: Final = "keys are headers and never cookies, so there are no credentials to allow; leave it out"
_BOUNDED: Final = "headers are bounded at 64 KiB; leave it out"
_NO_CODE: Final = "no code of a plugin is run here; name a parser that vLLM brings"
_FIELD_REFUSED: Final = "no request may bring one here; leave it out"

REFUSED: Final[Mapping[str, str]] = {
    "model_tag": "give the model before the --, as in: amalgam serve MODEL -- …",
    "model": "give the model before the --, as in: amalgam serve MODEL -- …",
    "headless": _ONE_PROCESS,
    "api_server_count": _ONE_PROCESS,
    "grpc": _NO_GRPC,
    "grpc_port": _NO_GRPC,
    "data_parallel_supervisor_port": _ONE_PROCESS,
    "dp_supervisor_probe_interval_s": _ONE_PROCESS,
    "dp_supervisor_probe_timeout_s": _ONE_PROCESS,
    "dp_supervisor_probe_failure_threshold": _ONE_PROCESS,
    "uds": "give an address with --host and --port",
    "uvicorn_log_level": "set AMALGAM_LOG_FORMAT and AMALGAM_ACCESS_LOG",
    "disable_access_log_for_endpoints": "set AMALGAM_ACCESS_LOG=false for no line at all",
    "allow_credentials": _KEYS_ARE_HEADERS,
    "allowed_methods": "all methods of the API are allowed to the origins of --allowed-origins; leave it out",
    "allowed_headers": "all headers are allowed to the origins of --allowed-origins; leave it out",
    "enable_ssl_refresh": "start the server again when the certificate changes; leave it out",
    "middleware": _NO_CODE.replace("name a parser that vLLM brings", "put a proxy before the server"),
    "h11_max_incomplete_event_size": _BOUNDED,
    "h11_max_header_count": _BOUNDED,
    "enable_offline_docs": "no page of documentation is served; GET /openapi.json with the admin key",
    "enable_flash_late_interaction": _NO_SUCH_ROUTE,
    "trust_request_chat_template": _FIELD_REFUSED,
    "trust_request_mm_kwargs": _FIELD_REFUSED,
    "tool_parser_plugin": _NO_CODE,
    "reasoning_parser_plugin": _NO_CODE,
    "enable_server_load_tracking": "see amalgam_requests_running on /metrics; leave it out",
    "enable_tokenizer_info_endpoint": _NO_SUCH_ROUTE,
    "cohere_is_reasoning_model": _NO_SUCH_ROUTE,
    "tokens_only": _NO_SUCH_ROUTE,
    "enable_scale_out": _NO_SUCH_ROUTE,
    "enable_lora": "adapters are what is served; leave it out",
}
"""They are without effect here, with what to do instead."""


def given_flags(parser: ArgumentParser, flags: Sequence[str]) -> dict[str, Any]:
    """The arguments that ``flags`` set, those of a file of ``--config`` included, and none that is a default."""
    defaults = [(action, action.default) for action in parser._actions]
    try:
        for action, _ in defaults:
            action.default = argparse.SUPPRESS
        return vars(parser.parse_args(list(flags)))
    finally:
        for action, default in defaults:
            action.default = default


def refuse_without_effect(given: Mapping[str, Any]) -> None:
    """Raise FlagRefused for the first argument that would change nothing."""
    for name in given:
        if name in REFUSED:
            raise FlagRefused(_spelled(name), REFUSED[name])
    names = given.get("served_model_name") or ()
    if not isinstance(names, str) and len(names) > 1:
        raise FlagRefused(
            "--served-model-name", "the base model has one name; give one, and aliases on the admin plane"
        )


def settled(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """``settings`` with what the flags set of them.

    Raises:
        FlagRefused: a value that the setting does not allow.
    """
    changes = {field: given[name] for name, field in SETTINGS.items() if given.get(name) is not None}
    if given.get("api_key"):
        changes["api_keys"] = (*settings.access.api_keys, *given["api_key"])
    roots = [_absolute(module.path) for module in given.get("lora_modules") or () if Path(module.path).is_dir()]
    if roots:
        changes["source_roots"] = (*settings.adapters.source_roots, *roots)
    try:
        return Settings(**(settings.values() | changes)) if changes else settings
    except SettingRefused as error:
        raise FlagRefused(_spelled(str(error.param)), f"its value is not allowed ({error.reason})") from None


def lora_sources(given: Mapping[str, Any], source_of: Callable[[str], str]) -> dict[str, str]:
    """The adapters of ``--lora-modules``: the source of each by its name.

    Args:
        given: what the flags set.
        source_of: the source that a path, once absolute, or a hub id means.

    Raises:
        LoraModuleUnusable: no folder and no hub id, a name twice, or weights in a form that is not served.
    """
    found: dict[str, str] = {}
    for module in given.get("lora_modules") or ():
        if module.name in found:
            raise LoraModuleUnusable(module.name, "the name is given twice")
        if getattr(module, "is_3d_lora_weight", False):
            raise LoraModuleUnusable(module.name, "LoRA on three-dimensional weights is not served")
        is_folder = Path(module.path).is_dir()
        source = source_of(str(_absolute(module.path)) if is_folder else module.path)
        if source.startswith("file://") and not is_folder:
            raise LoraModuleUnusable(module.name, "its path is no folder of this machine and no hub id")
        found[module.name] = source
    return found


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def left_to_vllm(args: Namespace) -> Namespace:
    """``args`` without what this server does itself: vLLM would load the adapters beside the registry, unchecked."""
    args.lora_modules = None
    args.api_key = None
    return args


def known() -> Iterable[str]:
    """Every argument with a place in one of the tables."""
    return READ_BY_VLLM | SETTINGS.keys() | OURS | ALWAYS | REFUSED.keys()


def _spelled(name: str) -> str:
    return "the model" if name == "model_tag" else f"--{name.replace('_', '-')}"
