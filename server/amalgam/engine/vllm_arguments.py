"""The flags of vLLM's server that this one gives it: our defaults, by platform, and vLLM's parser over them."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from amalgam.engine.adaptable import ASKED
from amalgam.engine.cpu.preload import EXTENSION
from amalgam.engine.cpu.processor import multiplies_bfloat16
from amalgam.engine.start_reason import start_reason, told_by
from amalgam.errors.serving import FlagInvalid
from amalgam.settings import Settings


def adapter_places(settings: Settings, *, on_cpu: bool) -> tuple[int, int]:
    """Slots of a batch, and adapters in memory: as set, else as many as are cheap.

    With our LoRA on a CPU a slot takes memory for the adapter in it, and an adapter in memory is a mapping of its file.
    Elsewhere either is a copy in the type that vLLM computes in, and a slot's is padded to the largest rank.
    """
    is_roomy = on_cpu and settings.engine.cpu_lora == "amalgam"
    slots = settings.engine.max_loras or (16 if is_roomy else 4)
    return slots, settings.engine.max_cpu_loras or max(slots, 256 if is_roomy else 64)


def our_flags(
    settings: Settings, model: str, name: str, *, in_sixteen_bits: Callable[[], bool], is_demo: bool
) -> list[str]:
    """What this server asks of vLLM on the platform that it runs on, before the user's own flags.

    Args:
        model: folder of the base model.
        name: of the base model in requests.
        in_sixteen_bits: whether it is served in 16 bits alone; asked where that decides something.
        is_demo: whether it is the demo model, whose context and batch are known.
    """
    from vllm.platforms import current_platform

    flags = ["--model", model, "--served-model-name", name, "--enable-lora"]
    slots, kept = adapter_places(settings, on_cpu=current_platform.is_cpu())
    flags += ["--max-loras", str(slots), "--max-cpu-loras", str(kept)]
    flags += ["--max-lora-rank", str(settings.engine.max_lora_rank)]
    # Without a host vLLM would fetch from anywhere; what no request is let through with needs one that is not there.
    flags += ["--allowed-media-domains", *(settings.http.media_hosts or ("nowhere.invalid",))]
    # One backend, by name: where vLLM chooses by request, what the first cannot honour is dropped or becomes a 500.
    flags += ["--structured-outputs-config.backend", "xgrammar"]
    if current_platform.is_cpu():
        flags += ["--enforce-eager"]
        if not multiplies_bfloat16(settings.engine.cpu_units) and not in_sixteen_bits():
            # What vLLM has no kernels for in 32 bits, it refuses to start in them, or ends in the first step.
            flags += ["--dtype", "float32"]
    reads_beside_steps = current_platform.is_cpu() and settings.engine.cpu_lora == "amalgam"
    flags += ["--worker-extension-cls", EXTENSION if reads_beside_steps else ASKED]
    if is_demo:
        flags += ["--max-model-len", str(settings.engine.max_model_len), "--max-num-seqs", "72"]
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    return flags


def serve_parser() -> ArgumentParser:
    """The parser of vLLM's own server."""
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ModuleNotFoundError:
        # Where 0.33, the GPU's release, has it.
        from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM's classes have no types here
        """It raises in the place of ending the process below the whole list of flags."""

        def error(self, message: str) -> NoReturn:
            raise FlagInvalid(told_by(message.removeprefix("argument ")))

    parser: ArgumentParser = make_arg_parser(Parser())
    return parser


def parsed(parser: ArgumentParser, flags: Sequence[str]) -> Namespace:
    """The arguments that the flags come to, checked as vLLM's server checks them; of two the later wins.

    Raises:
        FlagInvalid: vLLM cannot take them.
    """
    try:
        from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    except ModuleNotFoundError:
        from vllm.entrypoints.common.cli_args import validate_parsed_serve_args
    from vllm.exceptions import VLLMError

    args: Namespace = parser.parse_args(list(flags))
    try:
        validate_parsed_serve_args(args)
    except (ValueError, TypeError, VLLMError) as error:
        raise FlagInvalid(start_reason(error)) from error
    _require_parsers(args)
    return args


def _require_parsers(args: Namespace) -> None:
    """Look up the names of parsers: vLLM finds a wrong one out once the weights are loaded."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for field, known in (("tool_call_parser", ToolParserManager), ("reasoning_parser", ReasoningParserManager)):
        name, names = getattr(args, field, None), known.list_registered()
        if name and name not in names:
            near = "".join(f"; did you mean {one!r}?" for one in get_close_matches(name, names, 1))
            raise FlagInvalid(f"--{field.replace('_', '-')}: vLLM has no parser {name!r}{near}")
