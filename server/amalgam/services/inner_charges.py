"""Evaluations are charged to who asked for them: the same limits, the same ledger, by what the engine counted."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from amalgam.domain.answer_metrics import KEPT
from amalgam.domain.evaluation import Evaluation, EvaluationItem
from amalgam.domain.limits import Payer
from amalgam.domain.usage import Counts, Spender
from amalgam.services.inference import Inference
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.limits import Limiter
from amalgam.services.usage_ledger import UsageLedger
from amalgam.telemetry.context import RequestContext, enter

_TEMPLATE_TOKENS = 512
"""It is as for a client's request: what a chat template may add."""


class InnerCharges:
    """Charges calls that no client's request is behind.

    Args:
        keys: who asked, as it is now.
        limits: what they may use.
        usage: what they used.
        inference: what names mean.
    """

    def __init__(self, keys: KeyDirectory, limits: Limiter, usage: UsageLedger, inference: Inference) -> None:
        self._keys = keys
        self._limits = limits
        self._usage = usage
        self._inference = inference

    @asynccontextmanager
    async def charged(self, evaluation: Evaluation, model: str, item: EvaluationItem) -> AsyncIterator[None]:
        """The block asks ``item`` of ``model``; what it took is charged, whatever becomes of it.

        Raises:
            RateLimited, BudgetSpent, RequestExceedsLimit, RegistryUnavailable: see `Limiter.reserve`.
        """
        context = RequestContext(evaluation.id)
        enter(context)
        tenant = self._keys.tenant(evaluation.tenant)
        payer = None if tenant is None else Payer(tenant, self._keys.key(evaluation.key_id))
        limits = None
        if payer is not None:
            limits = await self._inference.found(
                lambda: self._limits.of(payer, lambda: self._inference.names_of(model))
            )
        reservation = None if limits is None else await self._limits.reserve(limits, _most(evaluation, item))
        try:
            yield
        finally:
            tokens = context.tokens
            if reservation is not None:
                reservation.spent(tokens.total)
                reservation.settle()
            if context.adapter is not None or tokens.total:
                spender = Spender(
                    evaluation.tenant, evaluation.key_id, context.alias or "", context.adapter or "", evaluation.kind
                )
                counts = Counts(1, tokens.prompt, tokens.cached, tokens.completion, context.blend_builds)
                self._usage.add(spender, counts)


def _most(evaluation: Evaluation, item: EvaluationItem) -> int:
    """Tokens that an item may take: its question twice, where its reference is weighed too, and an answer.

    Where an own answer is to be kept, it is given, and read after the question, besides.
    """
    texts: Sequence[str] = [str(item.prompt or ""), str(item.reference or "")]
    if item.messages is not None:
        texts = [*texts, *(str(message) for message in item.messages)]
    question = sum(len(text.encode()) for text in texts) + _TEMPLATE_TOKENS
    asked = 2 * question + evaluation.max_tokens + 1
    return asked + 2 * (question + evaluation.max_tokens) if KEPT in evaluation.metrics else asked
