"""`/v1/models` with thousands of adapters: every page, in order, each name once; and through the openai client."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import openai
import pytest

from amalgam.domain.adapter import Adapter, AdapterVersion
from amalgam.domain.version import CatalogRows
from amalgam.services.snapshot import Snapshot
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, start_app

COUNT = 3000
NAMES = sorted(f"adapter-{index}" for index in range(COUNT))


def rows() -> CatalogRows:
    created = datetime(2030, 1, 31, tzinfo=UTC)
    versions = tuple(
        AdapterVersion(
            id=index + 1, name=name, number=1, digest="0" * 64, rank=2, size_bytes=1, module_count=1,
            base_fingerprint="", source="upload", created_at=created,
        )
        for index, name in enumerate(NAMES)
    )  # fmt: skip
    adapters = tuple(Adapter(name=v.name, default_version=1, created_at=created, versions=(v,)) for v in versions)
    without = Adapter(name="aaa-no-default", default_version=None, created_at=created)
    return CatalogRows(revision=10**9, adapters=(without, *adapters), versions=versions)


@pytest.fixture(scope="module")
async def crowd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("crowd")) as opened:
        refresh = opened.services.catalog.refresh
        opened.services.catalog.refresh = _never  # type: ignore[method-assign]
        opened.services.catalog._snapshot = Snapshot.of(rows())
        yield opened
        opened.services.catalog.refresh = refresh  # type: ignore[method-assign]


async def _never() -> None:
    return


@pytest.mark.parametrize("limit", [1, 7, 999, 1000, 3000, 3001, 10_000])
async def test_pages_join_up_to_the_whole(crowd: RunningApp, limit: int) -> None:
    async with crowd.http(API_KEY) as session:
        seen: list[str] = []
        after: dict[str, str] = {}
        for _ in range(40 if limit < 999 else 4001):
            page = (await session.get("/v1/models", params={"limit": str(limit)} | after)).json()
            ids = [card["id"] for card in page["data"]]
            assert 0 < len(ids) <= limit
            assert page["object"] == "list"
            seen += ids
            if not page["has_more"]:
                break
            after = {"after": ids[-1]}
        assert seen == ["tiny", *NAMES][: len(seen)]
        assert len(seen) == (COUNT + 1 if limit >= 999 else limit * 40)


async def test_who_knows_of_no_pages_gets_them_all(crowd: RunningApp) -> None:
    async with crowd.http(API_KEY) as session:
        page = (await session.get("/v1/models")).json()
    assert [card["id"] for card in page["data"]] == ["tiny", *NAMES]
    assert page["has_more"] is False
    card = page["data"][1]
    assert (card["root"], card["parent"], card["owned_by"]) == (f"{NAMES[0]}@1", "tiny", "amalgam")
    assert page["data"][0]["parent"] is None


async def test_a_kept_page_ends_with_what_it_shows(crowd: RunningApp) -> None:
    catalog = crowd.services.catalog
    kept = catalog.snapshot
    async with crowd.http(API_KEY) as session:

        async def text(**params: str) -> str:
            return (await session.get("/v1/models", params=params)).text

        whole, after = await text(), await text(after=NAMES[7])
        assert await text() == whole, "another page came between"
        assert [card["id"] for card in json.loads(after)["data"]] == NAMES[8:]
        try:
            moved = dict(kept.defaults) | {"zz-new": kept.defaults[NAMES[0]]}
            catalog._snapshot = replace(kept, defaults=moved)
            assert [card["id"] for card in json.loads(await text())["data"]] == ["tiny", *NAMES, "zz-new"]
        finally:
            catalog._snapshot = kept
        assert await text() == whole


async def test_after_need_not_exist_and_the_end_is_empty(crowd: RunningApp) -> None:
    async with crowd.http(API_KEY) as session:

        async def ids(**params: str) -> list[str]:
            return [card["id"] for card in (await session.get("/v1/models", params=params)).json()["data"]]

        assert await ids(after="adapter-1x", limit="1") == [next(n for n in NAMES if n > "adapter-1x")]
        assert await ids(after=NAMES[-1]) == []
        assert await ids(after="tiny", limit="2") == NAMES[:2]
        for bad in ({"limit": "0"}, {"limit": "-1"}, {"limit": "10001"}, {"limit": "x"}, {"after": "x" * 257}):
            assert_error(await session.get("/v1/models", params=bad), 400, "invalid_value")


async def test_the_openai_client_lists_and_pages(crowd: RunningApp) -> None:
    async with (
        crowd.http() as http,
        openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key=API_KEY,
            http_client=http,
            max_retries=0,
            _strict_response_validation=True,
        ) as client,
    ):
        listed = [model.id async for model in client.models.list()]
        assert listed == ["tiny", *NAMES]
        page = await client.models.list(extra_query={"limit": 3, "after": NAMES[5]})
        assert [model.id for model in page.data] == NAMES[6:9]
        one = await client.models.retrieve(f"{NAMES[3]}@1")
        assert (one.id, one.object) == (f"{NAMES[3]}@1", "model")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nope")


@pytest.mark.parametrize("model", ["tiny", "adapter-7", "adapter-7@1", "tiny:adapter-7", "tiny:adapter-7@1"])
async def test_one_model_is_shown_under_the_name_that_was_asked_for(crowd: RunningApp, model: str) -> None:
    async with crowd.http(API_KEY) as session:
        card = (await session.get(f"/v1/models/{model}")).json()
    assert card["id"] == model
    assert card["root"] == ("tiny" if model == "tiny" else "adapter-7@1")


async def test_names_that_are_none_are_not_found(crowd: RunningApp) -> None:
    async with crowd.http(ADMIN_KEY) as session:
        for path in ("nope", "adapter-7@2", "adapter-7@01", "%20", "a/b", "..%2f..", "x" * 5000, "%ff"):
            assert_error(await session.get(f"/v1/models/{path}"), 404, "model_not_found")
        assert_error(await session.get("/v1/models/%00"), 400, "invalid_request")
