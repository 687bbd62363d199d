"""Fits the inputs of a merge to what the base model makes of their prompts, before they are merged."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from amalgam.domain.fit import ReadingFit
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.engine.environment import free_memory
from amalgam.errors.fits import FitUnread
from amalgam.errors.merge_run import MergeCancelled
from amalgam.kernels.backend import usable_device
from amalgam.merge.projection import ProjectedSource, Projection
from amalgam.merge.sources import TensorSource
from amalgam.workers.base_passes import BasePasses, Hook, computed_in

ROUNDS: Final = 2
"""In the first the inputs are fitted to what each is given on its own, in the second to what their merge is given."""
_ROOM: Final = 1.2
"""It is a factor over the weights' bytes: what a pass takes beside them."""
_MATRICES: Final = 3
"""A projection has so many at once, in float32 and of in_features squared."""

Row = Sequence[int]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit comes to."""

    sources: Mapping[str, TensorSource]
    tokens: int
    """So many were read, over all inputs."""
    unread: tuple[str, ...]
    """No prompt came to these modules, or they are no layer of the base: they are summed as they are."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where prompts are read."""

    base: Path | None
    """It is the folder of the base model."""
    device: str
    workspace_bytes: int
    """It is for the matrices of layers that are fitted in one pass over the prompts."""


def read_and_fit(
    place: Place,
    sources: Mapping[str, TensorSource],
    fit: ReadingFit,
    is_over: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Fitted:
    """`fitted`, with the base model in memory meanwhile and no longer.

    Raises:
        FitUnread: there is no base model here, it does not fit into memory, transformers does not read it, or the
            fit's own time is up. Besides, as `fitted`.
    """
    base = _present(place.base)
    if (reason := reading_needs(base, place.device).too_much) is not None:
        raise FitUnread(reason)
    device = usable_device(place.device)
    ends_at = clock() + fit.budget_s

    def is_late() -> bool:
        if clock() > ends_at:
            raise FitUnread(f"it takes longer than budget_s, {fit.budget_s:g} seconds; give it more, or fewer prompts")
        return is_over()

    return fitted(BasePasses(base, device), sources, fit, device, place.workspace_bytes, is_late)


def reading_needs(folder: Path | None, device: str) -> ReadingNeeds:
    """What `read_and_fit` takes here: of the base model, of two bytes a weight or more in its files.

    Args:
        folder: of the base model.
        device: where prompts are read, as settings name it.

    Raises:
        FitUnread: there is no base model here.
    """
    base, place = _present(folder), usable_device(device)
    dtype = computed_in(place)
    stored = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    return ReadingNeeds(
        memory_bytes=round(_ROOM * dtype.itemsize / 2 * stored),
        free_bytes=free_memory(),
        device=place.type,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _present(base: Path | None) -> Path:
    if base is None:
        raise FitUnread("the merge worker has no folder of the base model")
    return base


def fitted(
    passes: BasePasses,
    sources: Mapping[str, TensorSource],
    fit: ReadingFit,
    device: torch.device,
    workspace_bytes: int,
    is_over: Callable[[], bool],
) -> Fitted:
    """The inputs, each with A projected onto what it is given on its own prompts; see `amalgam.merge.projection`.

    Args:
        passes: the base model.
        sources: the inputs, as the fit names them.
        fit: prompts of every input.
        device: where it is computed.
        workspace_bytes: for the matrices of layers that are fitted in one pass over the prompts.
        is_over: asked between passes; whether to stop.

    Raises:
        FitUnread: the base model has none of the adapters' modules, or reads no prompt.
        MergeCancelled: ``is_over`` said so.
    """
    rows = {ref: _rows(passes, sources[ref], fit, ref, is_over) for ref in sources}
    adapted = {module: header.in_features for one in sources.values() for module, header in one.header.modules.items()}
    known = [module for module in adapted if passes.knows(module)]
    if not known:
        raise FitUnread("transformers has other names for the layers of this base model than its adapters")
    groups = passes.sharing(next(iter(rows.values()))[0], known)
    blocks = _blocks(groups, adapted, workspace_bytes)
    found = dict(sources)
    for number in range(ROUNDS):
        reading = _Reading(passes, sources, rows, passes.changes(*found.values()) if number else None, is_over)
        down: dict[str, dict[str, torch.Tensor]] = {ref: {} for ref in sources}
        for block in blocks:
            projections = {group[0]: _projection(group, sources, adapted[group[0]], device) for group in block}
            for ref, modules in reading.projected(projections):
                down[ref] |= modules
        found = {ref: ProjectedSource(source, down[ref]) for ref, source in sources.items()}
    read = {module for modules in down.values() for module in modules}
    return Fitted(found, sum(len(row) for its in rows.values() for row in its), tuple(sorted(adapted.keys() - read)))


def _rows(
    passes: BasePasses, source: TensorSource, fit: ReadingFit, ref: str, is_over: Callable[[], bool]
) -> list[Row]:
    """Each prompt of an input with its answer: the one that is given, or else the input's own."""
    items = fit.items[ref]
    if fit.labelled:
        after = [passes.text_tokens(item.reference or "") for item in items]
        before = [passes.tokens(item, len(answer)) for item, answer in zip(items, after, strict=True)]
    else:
        before = [passes.tokens(item, fit.max_tokens) for item in items]
        with passes.wearing(passes.changes(source)):
            after = passes.answers(before, fit.max_tokens, is_over)
    if len(after) < len(before):
        raise MergeCancelled
    rows: list[Row] = [[*question, *answer] for question, answer in zip(before, after, strict=True)]
    if not all(rows):
        raise FitUnread(f"a prompt of {ref} has no token")
    return rows


def _blocks(
    groups: Sequence[Sequence[str]], in_features: Mapping[str, int], workspace_bytes: int
) -> list[list[Sequence[str]]]:
    """Groups whose matrices fit into the workspace together; one that does not fit is a block of its own."""
    blocks: list[list[Sequence[str]]] = []
    room = 0
    for group in groups:
        needed = 4 * _MATRICES * in_features[group[0]] ** 2
        if not blocks or needed > room:
            blocks.append([])
            room = workspace_bytes
        blocks[-1].append(group)
        room -= needed
    return blocks


def _projection(
    group: Sequence[str], sources: Mapping[str, TensorSource], in_features: int, device: torch.device
) -> Projection:
    down = {
        ref: {module: source.factors(module)[0] for module in group if module in source.header.modules}
        for ref, source in sources.items()
    }
    return Projection(down, in_features, device)


def _require_time(is_over: Callable[[], bool]) -> None:
    """Asked again and again: whoever asks shows that the work does not stand still. Raises MergeCancelled."""
    if is_over():
        raise MergeCancelled


@dataclass(frozen=True, slots=True)
class _Reading:
    """One round: all rows once with their input in the base model, and again with the merge of the round before."""

    passes: BasePasses
    sources: Mapping[str, TensorSource]
    rows: Mapping[str, Sequence[Row]]
    merge: Sequence[tuple[str, Hook]] | None
    """It is None in the first round."""
    is_over: Callable[[], bool]

    def projected(self, projections: Mapping[str, Projection]) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """A of each input's modules in the groups that ``projections`` are of, by the module that leads the group."""
        for ref, its in self.rows.items():
            own = self.passes.changes(self.sources[ref])
            for row in its:
                _require_time(self.is_over)
                self._read(ref, row, own, projections)
            for projection in projections.values():
                projection.end_of(ref)
        for projection in projections.values():
            _require_time(self.is_over)
            yield from projection.projected().items()

    def _read(self, ref: str, row: Row, own: Sequence[tuple[str, Hook]], projections: Mapping[str, Projection]) -> None:
        first = self._given(row, own, projections)
        second = {} if self.merge is None else self._given(row, self.merge, projections)
        for leader, projection in projections.items():
            if (mine := first.get(leader)) is None:
                continue
            given = second.get(leader)
            # An expert is not given every token, and by the merge perhaps others: these cannot be paired.
            is_paired = given is not None and len(mine) == len(given) == len(row)
            projection.observe(ref, mine, given if is_paired else None)

    def _given(
        self, row: Row, worn: Sequence[tuple[str, Hook]], projections: Mapping[str, Projection]
    ) -> Mapping[str, torch.Tensor]:
        """What each leader is given: [tokens, in_features]; nothing of one that no token comes to."""
        given: dict[str, list[torch.Tensor]] = {}

        def seen(leader: str, tokens: torch.Tensor) -> None:
            given.setdefault(leader, []).append(tokens.clone())

        with self.passes.wearing(worn):
            self.passes.read(row, {leader: partial(seen, leader) for leader in projections})
        return {leader: torch.cat(parts) for leader, parts in given.items()}
