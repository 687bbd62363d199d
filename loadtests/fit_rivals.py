"""Rivals of `iteris` that learn a weight for every module of every input, by gradient.

`nsc` is Null-Space Compression merging (arXiv:2603.26317), which needs no wanted answers: its weights are such that
what the merge gives a module on an input's own prompts lies as far as can be in what that input's A reads. `weights`
learns from wanted answers by their loss, of which two an input are held back to say which step was the best one.
Settings were fixed before a held-out question was asked; those of `weights` after one look at other `dev` questions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from amalgam.merge.sources import TensorSource
from amalgam_demo.task_item import TaskItem
from amalgam_demo.training import answer_loss, encode
from loadtests.skill_model import Answer, Factors, SkillModel

HELD_BACK: Final = 2
"""Of each input's items, which judge the weights and teach nothing."""
BETWEEN: Final = 5
"""Steps from one judgement to the next."""

One = TypeVar("One")


@dataclass(frozen=True)
class Descent:
    """How weights are learned.

    Attributes:
        start: what each begins at.
        steps: in all.
        rate: of Adam at first; it falls to zero in a straight line.
        batch: rows of each input a step.
    """

    start: float
    steps: int
    rate: float
    batch: int


@dataclass(frozen=True)
class Stacked:
    """What the inputs have for one module, one below the other.

    Attributes:
        down: every A, [Σr, in].
        up: every B with its scale, [out, Σr].
        owners: which input each of the Σr is of.
        reads: input -> orthonormal rows [r, in] that span what its A reads.
    """

    down: Tensor
    up: Tensor
    owners: Tensor
    reads: Mapping[str, Tensor]


class WeightedInputs:
    """Inputs beside the layers of a base model, each with a weight of its own in every module.

    Args:
        model: a causal model of transformers, with nothing merged into it; its own weights are not learned.
        sources: the inputs.
        start: what every weight begins at.

    Attributes:
        weights: [inputs, modules], float32.
    """

    def __init__(self, model: Any, sources: Mapping[str, TensorSource], start: float) -> None:
        self._model = model
        modules = dict.fromkeys(module for one in sources.values() for module in one.header.modules)
        self._stacked = {module: stacked(module, sources) for module in modules}
        self.weights = torch.full((len(sources), len(modules)), start, requires_grad=True)
        self._asked: tuple[str, Tensor] | None = None
        self._shares: list[Tensor] = []

    @contextmanager
    def added(self) -> Iterator[None]:
        """The model is the merge as long as the block runs."""
        self._model.requires_grad_(False)
        hooks = [
            self._model.get_submodule(module).register_forward_hook(self._hook(place, one))
            for place, (module, one) in enumerate(self._stacked.items())
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, place: int, one: Stacked) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        dtype = self._model.dtype
        down, up = one.down.to(dtype), one.up.to(dtype)
        reads = {name: rows.to(dtype) for name, rows in one.reads.items()}

        def add(module: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
            if self._asked is not None and self._asked[0] in reads:
                self._shares.append(null_share(given[0], reads[self._asked[0]], self._asked[1]))
            weights = self.weights[one.owners, place].to(dtype)
            return found + linear(linear(given[0], down) * weights, up)

        return add

    def null_ratio(self, name: str, rows: Sequence[Sequence[int]]) -> Tensor:
        """The share of what modules are given that this input's A does not read, mean over tokens and modules."""
        longest = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        self._asked = (name, mask)
        self._model.model(input_ids=tokens, attention_mask=mask, use_cache=False)
        shares, self._asked, self._shares = self._shares, None, []
        return torch.stack(shares).mean()

    def factors(self) -> Factors:
        """The merge with the weights as they are, uncut."""
        weights = self.weights.detach()
        return {
            module: (one.down, one.up * weights[one.owners, place])
            for place, (module, one) in enumerate(self._stacked.items())
        }


def stacked(module: str, sources: Mapping[str, TensorSource]) -> Stacked:
    """What the inputs have for a module."""
    down, up, owners, reads = [], [], [], {}
    for number, (name, source) in enumerate(sources.items()):
        if (header := source.header.modules.get(module)) is not None:
            a, b = (factor.float() for factor in source.factors(module))
            down.append(a)
            up.append(b * header.scaling)
            owners += [number] * len(a)
            reads[name] = torch.linalg.qr(a.mT).Q.mT.contiguous()
    return Stacked(torch.cat(down), torch.cat(up, dim=1), torch.tensor(owners), reads)


def null_share(given: Tensor, reads: Tensor, mask: Tensor) -> Tensor:
    """‖x - QᵀQx‖² / ‖x‖², mean over the tokens of the mask: what A does not read of what it is given.

    Args:
        given: x, [rows, tokens, in].
        reads: Q, [r, in], orthonormal.
        mask: [rows, tokens].
    """
    inside = linear(given, reads).float().square().sum(-1)
    share = 1 - inside / given.float().square().sum(-1)
    return (share * mask).sum() / mask.sum()


def descend(
    weights: Tensor,
    rows: Mapping[str, Sequence[One]],
    loss: Callable[[str, Sequence[One]], Tensor],
    how: Descent,
    judge: Callable[[], float] | None = None,
) -> None:
    """Learn the weights in place, by the mean over inputs of the loss on their rows.

    Args:
        weights: what is learned.
        rows: of each input, in turn.
        loss: of some rows of one input.
        how: steps, rate and batch.
        judge: asked now and then; the weights that it gives least stay. None: the last ones stay.
    """
    optimizer = torch.optim.Adam([weights], lr=how.rate)
    best = (judge(), weights.detach().clone()) if judge else None
    for step in range(how.steps):
        told = 0.0
        for name, mine in rows.items():
            some = [mine[(step * how.batch + at) % len(mine)] for at in range(how.batch)]
            found = loss(name, some) / len(rows)
            found.backward()  # type: ignore[no-untyped-call]
            told += found.item()
        optimizer.param_groups[0]["lr"] = how.rate * (1 - step / how.steps)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: {told:.4f}", flush=True)
        if judge and best and (step + 1) % BETWEEN == 0:
            value = judge()
            print(f"held back: {value:.4f}, best {best[0]:.4f}", flush=True)
            if value < best[0]:
                best = (value, weights.detach().clone())
    if best:
        weights.data.copy_(best[1])


def by_null_space(
    model: SkillModel, sources: Mapping[str, TensorSource], rows: Mapping[str, Sequence[Answer]], how: Descent
) -> Factors:
    """The sum of the inputs with weights of least null-space ratio on ``rows``: prompts with each input's answers."""
    model.wear({})
    inputs = WeightedInputs(model.model, sources, how.start)
    with inputs.added():
        descend(inputs.weights, rows, inputs.null_ratio, how)
    return inputs.factors()


def by_answers(
    model: SkillModel, sources: Mapping[str, TensorSource], items: Mapping[str, Sequence[TaskItem]], how: Descent
) -> Factors:
    """The sum of the inputs with weights of least loss on the wanted answers to ``items``."""
    model.wear({})
    rows = {name: [encode(model.tokenizer, item) for item in mine] for name, mine in items.items()}
    inputs = WeightedInputs(model.model, sources, how.start)

    def loss(name: str, some: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        return answer_loss(model.model, some, pad_id=model.tokenizer.pad_token_id)

    def judge() -> float:
        with torch.no_grad():
            return sum(loss(name, mine[-HELD_BACK:]).item() for name, mine in rows.items()) / len(rows)

    with inputs.added():
        descend(inputs.weights, {name: mine[:-HELD_BACK] for name, mine in rows.items()}, loss, how, judge)
    return inputs.factors()
