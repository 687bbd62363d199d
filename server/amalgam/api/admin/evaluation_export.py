"""A whole evaluation as one JSON document or one CSV table, written page by page."""

import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.responses import StreamingResponse

from amalgam.api.admin.evaluation_models import EvaluationReportView, MeasurementView
from amalgam.api.admin.spreadsheet import harmless
from amalgam.domain.evaluation import Evaluation, EvaluationItem, Measurement
from amalgam.services.evaluations import EXPORT_PAGE, EvaluationService

_COLUMNS: Final = ("target", "model", "served", "task", "item", "reference", "answer", "error_code")
EXPORTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Everything that was asked and answered so far",
        "content": {
            "application/json": {
                "schema": {"type": "object", "examples": [{"evaluation": {}, "table": [], "items": [], "results": []}]}
            },
            "text/csv": {"schema": {"type": "string", "examples": [",".join(_COLUMNS) + ",exact_match\n"]}},
        },
    }
}


async def export_json(service: EvaluationService, evaluation: Evaluation) -> StreamingResponse:
    """``evaluation``, ``table``, ``refused``, ``items`` and ``results``."""
    cells, refused = await service.table(evaluation.id)
    items = await service.items(evaluation.id)
    head = EvaluationReportView.of(evaluation, cells, refused).model_dump()
    head |= {"items": [item.model_dump(mode="json", exclude_none=True) for item in items]}

    async def pieces() -> AsyncIterator[str]:
        yield json.dumps(head, ensure_ascii=False)[:-1] + ', "results": ['
        separator = ""
        async for page in _pages(service, evaluation.id):
            rows = (MeasurementView.of(evaluation, one).model_dump_json() for one in page)
            yield separator + ",\n".join(rows)
            separator = ",\n"
        yield "]}\n"

    return _download(pieces(), "application/json", f"{evaluation.id}.json")


async def export_csv(service: EvaluationService, evaluation: Evaluation) -> StreamingResponse:
    """One row a measurement, one column a metric; a metric that does not apply leaves its column empty.

    A text that a spreadsheet would run as a formula gets an apostrophe in front. The JSON document has it as it was.
    """
    items = await service.items(evaluation.id)

    async def pieces() -> AsyncIterator[str]:
        yield _rows([[*_COLUMNS, *evaluation.metrics]])
        async for page in _pages(service, evaluation.id):
            yield _rows([_row(evaluation, items[one.item], one) for one in page])

    return _download(pieces(), "text/csv; charset=utf-8", f"{evaluation.id}.csv")


async def _pages(service: EvaluationService, evaluation_id: str) -> AsyncIterator[tuple[Measurement, ...]]:
    after = None
    while page := await service.results(evaluation_id, target=None, after=after, limit=EXPORT_PAGE):
        yield page
        after = (page[-1].target, page[-1].item)


def _row(evaluation: Evaluation, item: EvaluationItem, one: Measurement) -> list[Any]:
    model = evaluation.targets[one.target].model
    fixed = [one.target, model, one.served, item.task, one.item, item.reference, one.answer, one.error_code]
    return [*fixed, *(one.values.get(metric) for metric in evaluation.metrics)]


def _rows(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[harmless(cell) for cell in row] for row in rows])
    return text.getvalue()


def _download(pieces: AsyncIterator[str], media_type: str, name: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces, media_type=media_type, headers=headers)
