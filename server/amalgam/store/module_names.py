"""One name for one module: mostly what transformers calls it today, however a checkpoint or an adapter spells it.

Vision-language models of transformers before 4.52 had their language model at the top; today everything lies below
``model.``. Published checkpoints keep the old spelling, adapters have that of the release which trained them, and vLLM
reads both (``hf_to_vllm_mapper`` of its model classes). Of models that hear vLLM reads the older spelling alone, which
is also their checkpoints'; so that is a module's one name there. Checkpoints of a few older families were saved without
the task's head and lack the prefix that the whole model has.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import unchanged
from amalgam.store.checkpoint_tensors import CONFIG, checkpoint_tensors, read_json

Renaming = Callable[[str], str]

HEARING: Final = ("audio_config", "encoder_config")
"""They are parts of the config of a model that hears; the second in Granite Speech, and elsewhere without a
``text_config``."""
_NESTED: Final = re.compile(r"language_model\.model\.")
_OUTPUT: Final = re.compile(r"language_model\.lm_head(?=\.|$)")
_BESIDE: Final = re.compile(r"(?=(?:vision_tower|vision_model|audio_tower|multi_modal_projector|visual|connector)\.)")
_TOWER: Final = re.compile(r"(model\.vision_tower\.)vision_model\.")
"""It matches CLIP's and SigLIP's modules, of which transformers has taken out a level since."""
_HEARD: Final = re.compile(
    r"(?:model\.)?language_model\.(?:(?:model|backbone)\.)*(?=(?:layers|embed_tokens|norm|decoder)(?:\.|$))"
    r"|model\.(?=(?:layers|embed_tokens|norm)(?:\.|$))"
)
_HEARING: Final = re.compile(
    r"model\.(?=(?:audio_tower|vision_tower|vision_model|multi_modal_projector|encoder|projector)\.)"
)
_HEARD_OUTPUT: Final = re.compile(r"lm_head(?=\.|$)")
_FLAT: Final = re.compile(r"model\.(?=(?:layers|embed_tokens|norm)(?:\.|$))")
_SPARSE: Final = ".block_sparse_moe."
"""Mixtral's checkpoints and their kind have their experts there; transformers has them in ``mlp`` since release 5."""
_EXPERTS: Final = re.compile(r"(\.layers\.\d+)\.mlp\.(?:(?=experts(?:\.|$))|(gate|router)(?=\.|$))")
_AT_THE_TOP: Final = frozenset({"llama4", "blip-2", "qianfan_ocr", "nemotron_h_omni", "NemotronH_Nano_VL_V2"})
"""These have their language model at the top in vLLM, which reads no other names of them, as of models that hear."""
_SPELLINGS: Final[Mapping[str, tuple[tuple[re.Pattern[str], str], ...]]] = {
    "nemotron_h": ((re.compile(r"backbone\."), "model."),),
    "hy_v3": (
        (re.compile(r"(.+\.mlp\.)shared_experts(?=\.)"), r"\1shared_mlp"),
        (re.compile(r"(.+\.mlp\.)router\.gate(?=\.|$)"), r"\1gate"),
    ),
    "laguna": ((re.compile(r"(.+\.mlp\.)shared_experts(?=\.)"), r"\1shared_expert"),),
}
"""By ``model_type``, it has how checkpoints and transformers differ, and what vLLM reads of an adapter."""
_PREFIXES: Final[Mapping[str, str]] = {"gpt2": "transformer.", "bloom": "transformer.", "opt": "model."}
"""By ``model_type``, it has what checkpoints of the model without its head lack."""


def renaming(config: Mapping[str, Any], stored: Collection[str]) -> Renaming:
    """What turns any spelling of a module of the model into its one name.

    Args:
        config: the model's ``config.json``.
        stored: names of the checkpoint's tensors.
    """
    if isinstance(config.get("text_config"), dict):
        if isinstance(config.get("vision_config"), dict):
            return _of_hearing if config.get("model_type") in _AT_THE_TOP else _of_vision_language
        if any(isinstance(config.get(key), dict) for key in HEARING):
            return _of_hearing
    if any(_SPARSE in name for name in stored):
        router = "router" if any(f"{_SPARSE}router." in name for name in stored) else "gate"
        return lambda name: _EXPERTS.sub(lambda at: f"{at[1]}{_SPARSE}{router if at[2] else ''}", name, count=1)
    spellings = _SPELLINGS.get(str(config.get("model_type")))
    if spellings is not None:
        return lambda name: _spelled(name, spellings)
    prefix = _PREFIXES.get(str(config.get("model_type")))
    if prefix is not None and not any(name.startswith(prefix) for name in stored):
        return lambda name: name if name.startswith(("lm_head", prefix)) else prefix + name
    return unchanged


def renaming_of(folder: Path | None) -> Renaming:
    """`renaming` of the model in ``folder``; where that model is not available, names stay.

    Raises:
        BaseModelUnreadable: no config, or files that do not belong together.
    """
    return unchanged if folder is None else renaming(read_json(folder / CONFIG), checkpoint_tensors(folder) or {})


def _spelled(name: str, spellings: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, one in spellings:
        found = pattern.match(name)
        if found is not None:
            return found.expand(one) + name[found.end() :]
    return name


def _of_vision_language(name: str) -> str:
    return _TOWER.sub(r"\1", _with_todays_beginning(name), count=1)


def _of_hearing(name: str) -> str:
    for pattern, one in ((_HEARD, "language_model.model."), (_HEARD_OUTPUT, "language_model.lm_head"), (_HEARING, "")):
        found = pattern.match(name)
        if found is not None:
            return one + name[found.end() :]
    return name


def _with_todays_beginning(name: str) -> str:
    for pattern, today in (
        (_NESTED, "model.language_model."),
        (_OUTPUT, "lm_head"),
        (_BESIDE, "model."),
        (_FLAT, "model.language_model."),
    ):
        found = pattern.match(name)
        if found is not None:
            return today + name[found.end() :]
    return name
