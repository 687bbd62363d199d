"""What the base model's modules are given at the end of a prompt, where it has read all of it: one pass, in torch."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from amalgam.domain.evaluation import EvaluationItem
from amalgam.errors.aliases import PromptsUnread
from amalgam.kernels.row_energy import row_basis, row_energy
from amalgam.workers.loaded_base import LoadedBase

BATCH: Final = 8
"""So many prompts of about one length are read together."""
_LAYER: Final = re.compile(r"\.(\d+)\.")
_FIRST_OF_FOUR: Final = 3
"""The last quarter of the layers is looked at: the first tell little of what is asked for."""


class BaseReading:
    """The base model, and what its modules were given last.

    Args:
        folder: of the base model, as transformers reads it.

    Raises:
        PromptsUnread: transformers does not read it.
    """

    def __init__(self, folder: Path) -> None:
        self._base = LoadedBase(folder, torch.bfloat16, PromptsUnread)
        self._model = self._base.model
        self._given: dict[str, Tensor] = {}

    def late_modules(self, modules: Collection[str]) -> list[str]:
        """Those of ``modules`` that the model has in the last quarter of its layers."""
        known = {name for name, one in self._model.named_modules() if isinstance(one, nn.Linear)}
        layers = [int(found[1]) for name in known if (found := _LAYER.search(name))]
        first = _FIRST_OF_FOUR * (max(layers, default=-1) + 1) // 4
        return sorted(
            name for name in known & set(modules) if (found := _LAYER.search(name)) and int(found[1]) >= first
        )

    def inputs(
        self, prompts: Sequence[str], modules: Collection[str], is_over: Callable[[], bool] = lambda: False
    ) -> Mapping[str, Tensor]:
        """What each module is given at the last token of each prompt, which the model is about to answer: [n, in].

        Args:
            prompts: what a user says.
            modules: names of linear layers.
            is_over: asked between batches; whether the time is up.

        Raises:
            PromptsUnread: the time is up, or a module is not read for every prompt.
        """
        tokens = [self.tokens(prompt) for prompt in prompts]
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        hooks = [self._model.get_submodule(name).register_forward_pre_hook(self._seen(name)) for name in modules]
        found: dict[str, list[Tensor]] = {name: [] for name in modules}
        try:
            for start in range(0, len(order), BATCH):
                if is_over():
                    raise PromptsUnread("reading them takes longer than is allowed")
                self._read([tokens[place] for place in order[start : start + BATCH]])
                for name in modules:
                    if name not in self._given:
                        raise PromptsUnread(f"the base model does not use {name} for every prompt")
                    found[name].append(self._given[name])
        finally:
            for hook in hooks:
                hook.remove()
        back = torch.tensor(order).argsort()
        return {name: torch.cat(rows)[back] for name, rows in found.items()}

    def _seen(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
            # An expert is given some tokens of all prompts, in one row each.
            if given[0].dim() == 3:
                self._given[name] = given[0][:, -1].float()

        return keep

    def tokens(self, prompt: str) -> list[int]:
        """The tokens of a chat of one turn where the model has a template, else of the text; a long one's two ends."""
        return self._base.tokens(EvaluationItem(messages=({"role": "user", "content": prompt},)))

    def _read(self, rows: Sequence[Sequence[int]]) -> None:
        """One pass over rows that end together."""
        self._given.clear()
        longest = max(map(len, rows))
        tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            self._model.base_model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)


def energies(
    reading: BaseReading,
    factors: Mapping[str, Mapping[str, Tensor]],
    prompts: Sequence[str],
    is_over: Callable[[], bool] = lambda: False,
) -> list[list[float]]:
    """How much of what the base model makes of each prompt lies in the row space of each adapter.

    Args:
        reading: the base model.
        factors: `lora_A` by module, of each adapter.
        prompts: what users say.
        is_over: whether the time is up.

    Returns:
        For each prompt, the mean over the adapter's modules in the last quarter of the layers, of each adapter.

    Raises:
        PromptsUnread: the time is up, or an adapter changes no module there.
    """
    late = {name: reading.late_modules(modules) for name, modules in factors.items()}
    for name, modules in late.items():
        if not modules:
            raise PromptsUnread(f"{name!r} changes no linear layer in the last quarter of the base model")
    given = reading.inputs(prompts, {module for modules in late.values() for module in modules}, is_over)
    columns = [
        torch.stack([row_energy(given[one], row_basis(factors[name][one])) for one in modules]).mean(dim=0)
        for name, modules in late.items()
    ]
    return [[float(value) for value in row] for row in torch.stack(columns, dim=1)]
