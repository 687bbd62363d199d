"""A model reads prompts with drafts of their answers, and goes on by itself from where it would have written otherwise.

One pass over prompt and draft together says how likely the draft is and how far the model agrees with it; what it
answers alone begins with that part, so only the rest is written token by token. What all prompts begin with is read
once, and rows that have ended leave the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

GROUP: Final = 10
"""Rows that are read together, next to each other in length, so that little is spent on padding."""


@dataclass(frozen=True)
class DraftRead:
    """One draft, as the model reads it.

    Attributes:
        agreed: tokens that are the model's own first choice there.
        alike: those of them before the first one that is not.
        nats: log-probability of the whole draft.
        answer: what the model answers itself, up to and with the token that ends it; empty where it was not asked.
    """

    agreed: int
    alike: int
    nats: float
    answer: Sequence[int]


@dataclass
class _Rows:
    """Rows with what the layers remember of them; each goes on after its last token that is masked in.

    Attributes:
        places: which rows these are.
        cache: keys and values, of all rows as long.
        mask: [rows, length], 1 where a token counts.
        next_tokens: what each row writes next.
    """

    places: list[int]
    cache: Any
    mask: Tensor
    next_tokens: Tensor

    def kept(self, which: Sequence[int]) -> "_Rows":
        """These of the rows alone."""
        index = torch.tensor(which)
        self.cache.batch_select_indices(index)
        return _Rows([self.places[at] for at in which], self.cache, self.mask[index], self.next_tokens[index])


class DraftReader:
    """Reads with a causal language model of transformers.

    Args:
        model: what reads.
        end: the token that ends an answer.
    """

    def __init__(self, model: Any, end: int) -> None:
        self._model, self._end = model, end

    @torch.inference_mode()
    def read(self, prompts: Sequence[list[int]], drafts: Sequence[Sequence[int]], max_tokens: int) -> list[DraftRead]:
        """Every draft after its prompt, and with ``max_tokens`` above 0 the model's own greedy answer too."""
        shared = _begin([prompt[:-1] for prompt in prompts])
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]) + len(drafts[at]))
        found: dict[int, DraftRead] = {}
        groups = []
        for start in range(0, len(order), GROUP):
            places = order[start : start + GROUP]
            rests = [prompts[at][len(shared) :] for at in places]
            rows, reads = self._drafts(list(places), shared, rests, [drafts[at] for at in places])
            found |= zip(places, reads, strict=True)
            groups.append(rows)
        if max_tokens:
            begun = {at: list(drafts[at][: found[at].alike]) for at in order}
            self._continue(_joined(groups), begun, max_tokens)
            found = {
                at: DraftRead(one.agreed, one.alike, one.nats, self._cut(begun[at], max_tokens))
                for at, one in found.items()
            }
        return [found[at] for at in range(len(prompts))]

    def _drafts(
        self, places: list[int], shared: list[int], rests: Sequence[list[int]], drafts: Sequence[Sequence[int]]
    ) -> tuple[_Rows, list[DraftRead]]:
        """One pass over a group of rows."""
        from transformers import DynamicCache

        cache = DynamicCache()
        if shared:
            self._model.model(input_ids=torch.tensor([shared]), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(places))
        longest = max(len(rest) + len(draft) for rest, draft in zip(rests, drafts, strict=True))
        blanks = [longest - len(rest) - len(draft) for rest, draft in zip(rests, drafts, strict=True)]
        tokens = torch.tensor(
            [[self._end] * blank + [*rest, *draft] for blank, rest, draft in zip(blanks, rests, drafts, strict=True)]
        )
        mask = torch.tensor([[1] * len(shared) + [0] * blank + [1] * (longest - blank) for blank in blanks])
        hidden = self._hidden(tokens, cache, mask)
        deepest = max(len(draft) for draft in drafts)
        logits = self._model.lm_head(hidden[:, -deepest - 1 :]).float().log_softmax(-1)
        reads, chosen = [], []
        for row, draft in enumerate(drafts):
            own, wanted = logits[row, deepest - len(draft) :], torch.tensor(draft, dtype=torch.long)
            first = own.argmax(-1)
            same = first[:-1] == wanted
            alike = int(same.long().cumprod(0).sum())
            nats = float(own[:-1].gather(1, wanted[:, None]).sum())
            reads.append(DraftRead(int(same.sum()), alike, nats, ()))
            chosen.append(int(first[alike]))
            mask[row, mask.shape[1] - len(draft) + alike :] = 0
        return _Rows(places, cache, mask, torch.tensor(chosen)), reads

    def _hidden(self, tokens: Tensor, cache: Any, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        found: Tensor = self._model.model(
            input_ids=tokens, past_key_values=cache, attention_mask=mask, position_ids=positions, use_cache=True
        ).last_hidden_state
        return found

    def _continue(self, rows: _Rows, answers: dict[int, list[int]], max_tokens: int) -> None:
        """Write each answer on until it ends or is as long as it may be."""
        while True:
            for place, token in zip(rows.places, rows.next_tokens.tolist(), strict=True):
                answers[place].append(token)
            active = [row for row, place in enumerate(rows.places) if not self._is_over(answers[place], max_tokens)]
            if not active:
                return
            if len(active) < len(rows.places):
                rows = rows.kept(active)
            rows.mask = functional.pad(rows.mask, (0, 1), value=1)
            hidden = self._hidden(rows.next_tokens[:, None], rows.cache, rows.mask)
            rows.next_tokens = self._model.lm_head(hidden[:, -1]).argmax(-1)

    def _is_over(self, answer: Sequence[int], max_tokens: int) -> bool:
        return len(answer) >= max_tokens or self._end in answer

    def _cut(self, answer: list[int], max_tokens: int) -> list[int]:
        """Up to and with the token that ends the answer, where there is one."""
        return answer[: answer.index(self._end) + 1] if self._end in answer else answer[:max_tokens]


def _begin(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with."""
    first, last = min(rows), max(rows)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return [one for one, _ in alike]


def _joined(groups: Sequence[_Rows]) -> _Rows:
    """All rows as one batch, the shorter ones filled up at the left."""
    from transformers import DynamicCache

    longest = max(rows.mask.shape[1] for rows in groups)
    cache = DynamicCache()
    for number in range(len(groups[0].cache.layers)):
        cache.update(*_wide([rows.cache.layers[number] for rows in groups], longest), number)
    return _Rows(
        [place for rows in groups for place in rows.places],
        cache,
        torch.cat([functional.pad(rows.mask, (longest - rows.mask.shape[1], 0)) for rows in groups]),
        torch.cat([rows.next_tokens for rows in groups]),
    )


def _wide(layers: Sequence[Any], longest: int) -> Iterator[Tensor]:
    """Keys and values of one layer, of all groups."""
    for name in ("keys", "values"):
        tensors = [getattr(layer, name) for layer in layers]
        yield torch.cat([functional.pad(one, (0, 0, longest - one.shape[2], 0)) for one in tensors])
