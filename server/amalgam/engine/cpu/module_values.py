"""Ranks and scales that an adapter's config gives single modules, found by the module's name while it is read.

vLLM 0.32 compares every key with every module, each as an expression. Of these it keeps some hundreds compiled, so that
an adapter with a rank of its own for each of more modules has all of them compiled anew for every module: 560 of them
hold a load up for tens of seconds.
"""

from collections.abc import Mapping
from typing import Any

from amalgam.domain.name_patterns import NamePatterns
from amalgam.engine.cpu import patches
from amalgam.errors.internal import PatternRefused


def look_up_by_name(peft_helper: Any) -> None:
    """Let the config that vLLM has read find values by name; the same ones, as PEFT's rule has them.

    Tables with expressions that registration refuses stay with vLLM.

    Args:
        peft_helper: vLLM's `PEFTHelper` of one adapter.
    """
    ranked = peft_helper.rank_pattern
    try:
        ranks, alphas = NamePatterns[Any](ranked), NamePatterns[Any](peft_helper.alpha_pattern)
    except PatternRefused:
        return

    def value(table: Mapping[str, Any], module: str) -> Any:
        return (ranks if table is ranked else alphas).get(module, None)

    patches.put("vllm.lora.peft_helper:PEFTHelper._match_pattern", value, on=peft_helper)
