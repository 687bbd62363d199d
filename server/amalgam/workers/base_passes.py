"""The base model in torch, with one adapter at a time added to it: what it answers, and what its modules are given."""

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

BATCH: Final = 10
"""Prompts that are answered together."""
MOST_TOKENS: Final = 1024
"""Of one prompt, its first and last in equal parts."""

Seen = Callable[[Tensor], object]


class BasePasses:
    """A base model that is not trained here.

    Args:
        folder: of the base model, as transformers reads it.
        device: where it computes.

    Raises:
        FitUnread: transformers does not read it.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        narrow = device.type != "cpu" or multiplies_bfloat16("detected")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if narrow else torch.float32)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise FitUnread(f"transformers does not read the base model: {type(error).__name__}") from error
        self._model = model.to(device).eval()
        self._device = device
        self._modules = dict(self._model.named_modules())

    def knows(self, module: str) -> bool:
        """Whether the base model has a module of that name."""
        return module in self._modules

    @contextmanager
    def wearing(self, adapter: TensorSource) -> Iterator[None]:
        """Add Δ of the adapter to what its modules give, as long as the block runs; modules not known are left out."""
        hooks = []
        try:
            for name, header in adapter.header.modules.items():
                if (module := self._modules.get(name)) is not None:
                    hooks.append(module.register_forward_hook(self._added(*adapter.factors(name), header.scaling)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _added(self, a: Tensor, b: Tensor, scaling: float) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        dtype = self._model.dtype
        down = a.to(self._device, torch.float32).to(dtype)
        up = (b.to(self._device, torch.float32) * scaling).to(dtype)

        def add(module: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
            # An embedding is given tokens, and is left as it is.
            if not isinstance(found, Tensor) or not given[0].is_floating_point():
                return found
            return found + nn.functional.linear(nn.functional.linear(given[0], down), up)

        return add

    def tokens(self, item: EvaluationItem) -> list[int]:
        """An item as the model reads it: a chat in the base's template where it has one; of a long one the ends."""
        messages = None if item.messages is None else [dict(message) for message in item.messages]
        if messages is not None and self._tokenizer.chat_template is not None:
            found = list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
        else:
            said = "\n".join(str(message["content"]) for message in messages) if messages is not None else item.prompt
            found = list(self._tokenizer(said)["input_ids"])
        half = MOST_TOKENS // 2
        return found if len(found) <= MOST_TOKENS else [*found[:half], *found[-half:]]

    def text_tokens(self, answer: str) -> list[int]:
        """An answer that somebody wrote, with the token that ends it."""
        found = list(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        return found if self._tokenizer.eos_token_id is None else [*found, self._tokenizer.eos_token_id]

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, is_over: Callable[[], bool]
    ) -> list[list[int]]:
        """The greedy answer to each, with the token that ends it; fewer than asked where ``is_over`` says so."""
        found: list[list[int]] = []
        for start in range(0, len(prompts), BATCH):
            if is_over():
                break
            rows = prompts[start : start + BATCH]
            longest = max(map(len, rows))
            tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self._device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self._device)
            with torch.inference_mode():
                out = self._model.generate(
                    input_ids=tokens, attention_mask=mask, generation_config=self._greedy(max_tokens)
                )
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
