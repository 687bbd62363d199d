"""The base model in torch, with adapters added to it: what it answers, and what its modules are given."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from amalgam.domain.evaluation import EvaluationItem
from amalgam.engine.cpu.processor import multiplies_bfloat16
from amalgam.errors.fits import FitUnread
from amalgam.merge.sources import TensorSource
from amalgam.workers.loaded_base import MOST_TOKENS, LoadedBase

BATCH: Final = 10
"""So many prompts are answered together."""

Seen = Callable[[Tensor], object]
Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def computed_in(device: torch.device) -> torch.dtype:
    """The type that passes are computed in: float32 on processors that multiply no bfloat16."""
    return torch.bfloat16 if device.type != "cpu" or multiplies_bfloat16("detected") else torch.float32


class BasePasses:
    """A base model that is not trained here.

    Args:
        folder: of the base model, as transformers reads it.
        device: where it computes.

    Raises:
        FitUnread: transformers does not read it.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._base = LoadedBase(folder, computed_in(device), FitUnread)
        self._tokenizer = self._base.tokenizer
        self._model = self._base.model.to(device)
        self._device = device
        self._modules = dict(self._model.named_modules())

    def knows(self, module: str) -> bool:
        """Whether the base model has a module of that name."""
        return module in self._modules

    def changes(self, *adapters: TensorSource) -> list[tuple[str, Hook]]:
        """What adds Δ of each adapter to what its modules give, for `wearing`; modules not known are left out."""
        return [
            (name, self._added(*adapter.factors(name), header.scaling))
            for adapter in adapters
            for name, header in adapter.header.modules.items()
            if self.knows(name)
        ]

    @contextmanager
    def wearing(self, changes: Sequence[tuple[str, Hook]]) -> Iterator[None]:
        """Have these changes in the base model, as long as the block runs."""
        hooks = []
        try:
            for name, hook in changes:
                hooks.append(self._modules[name].register_forward_hook(hook))
            yield
        finally:
            for one in hooks:
                one.remove()

    def _added(self, a: Tensor, b: Tensor, scaling: float) -> Hook:
        dtype = self._model.dtype
        down = a.to(self._device, torch.float32).to(dtype)
        up = (b.to(self._device, torch.float32) * scaling).to(dtype)

        def add(module: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
            # An embedding is given tokens, and is left as it is.
            if not isinstance(found, Tensor) or not given[0].is_floating_point():
                return found
            return found + nn.functional.linear(nn.functional.linear(given[0], down), up)

        return add

    def tokens(self, item: EvaluationItem, answer_tokens: int) -> list[int]:
        """An item as the model reads it, short enough for an answer of so many tokens behind it."""
        return self._base.tokens(item, max(2, min(MOST_TOKENS, self._context() - answer_tokens)))

    def text_tokens(self, answer: str) -> list[int]:
        """An answer that somebody wrote, with the token that ends it; of a very long one the beginning."""
        found = list(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        return [*found, *self._ends()[:1]][: min(MOST_TOKENS, self._context() // 2)]

    def _context(self) -> int:
        """How many tokens the model reads at most, as its config says; one that says nothing reads any number."""
        return int(getattr(self._model.config, "max_position_embeddings", None) or sys.maxsize)

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, is_over: Callable[[], bool]
    ) -> list[list[int]]:
        """The greedy answer to each, with the token that ends it; fewer than asked where ``is_over`` says so.

        It is asked before every token: an answer of a large model takes as long as it may stand still without a word.
        """
        found: list[list[int]] = []
        stopped = threading.Event()

        def asked(tokens: Tensor, scores: Any, **more: Any) -> Tensor:
            if is_over():
                stopped.set()
            return torch.full((len(tokens),), stopped.is_set(), device=tokens.device)

        for start in range(0, len(prompts), BATCH):
            rows = prompts[start : start + BATCH]
            longest = max(map(len, rows))
            tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self._device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self._device)
            with torch.inference_mode():
                out = self._model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    generation_config=self._greedy(max_tokens),
                    stopping_criteria=[asked],
                )
            if stopped.is_set():
                break
            found += [self._cut(row[longest:].tolist()) for row in out]
        return found

    def _greedy(self, max_tokens: int) -> Any:
        from transformers import GenerationConfig

        ends = self._ends()
        return GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
        )

    def _ends(self) -> list[int]:
        said = self._model.generation_config.eos_token_id if self._model.generation_config is not None else None
        given = said if isinstance(said, list) else [said, self._tokenizer.eos_token_id]
        return list(dict.fromkeys(int(token) for token in given if token is not None))

    def _cut(self, tokens: list[int]) -> list[int]:
        """Up to and with the token that ends the answer, where there is one."""
        ends = self._ends()
        at = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[: at + 1]

    def read(self, row: Sequence[int], watched: Mapping[str, Seen]) -> None:
        """One pass over one row; what the watched modules are given is told as [tokens, in_features]."""

        def telling(seen: Seen) -> Seen:
            return lambda given: seen(given.flatten(0, -2)) if given.is_floating_point() else None

        self._pass(row, {name: telling(seen) for name, seen in watched.items()})

    def sharing(self, row: Sequence[int], modules: Sequence[str]) -> list[list[str]]:
        """Modules by what they are given: those of one group are given the very same tensor; one pass over ``row``.

        Modules that no token of the row comes to are groups of their own.
        """
        # Kept until the end, so that no later tensor lies at the same place.
        given: dict[str, Tensor] = {}
        self._pass(row, {name: partial(given.__setitem__, name) for name in modules})
        groups: dict[Any, list[str]] = {}
        for name in modules:
            groups.setdefault(id(given[name]) if name in given else name, []).append(name)
        return list(groups.values())

    def _pass(self, row: Sequence[int], told: Mapping[str, Seen]) -> None:
        """One pass over one row; of each named module what it is given first is told, as it is."""

        def telling(tell: Seen) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            # What a hook returns would take the place of what the module is given.
            def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
                if given:
                    tell(given[0])

            return hook

        hooks = [self._modules[name].register_forward_pre_hook(telling(tell)) for name, tell in told.items()]
        try:
            with torch.no_grad():
                self._model(input_ids=torch.tensor([list(row)], device=self._device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
