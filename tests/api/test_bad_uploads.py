"""Uploads over HTTP: forms that lie, end early or never end leave nothing behind."""

import asyncio
import gc
import json
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_factory import encode_safetensors
from tests.support.running_app import (
    ADMIN_KEY,
    API_KEY,
    RunningApp,
    assert_error,
    push,
    served,
    start_app,
    write_adapter,
)

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
UPLOADS = ("/admin/v1/adapters", "/admin/v1/adapters:validate")


def part(name: str, body: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + body + b"\r\n"


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(parts) + end


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_adapter(tmp_path_factory.mktemp("good"), seed=1)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def good_parts(good: dict[str, bytes]) -> list[bytes]:
    return [part("files", body, name) for name, body in good.items()]


@pytest.fixture(autouse=True)
async def nothing_is_left(running_app: RunningApp) -> AsyncIterator[None]:
    yield
    assert running_app.staged() == []
    assert running_app.engine.residency.held == 0


MALFORMED: list[tuple[bytes, dict[str, str]]] = [
    (b"", FORM),
    (b"no boundary at all", FORM),
    (form(), {"Content-Type": "multipart/form-data"}),
    (form(), {"Content-Type": "multipart/form-data; boundary="}),
    (form(), {"Content-Type": 'multipart/form-data; boundary="b"; charset=utf-7'}),
    (form(part("name", b"\\ud800")), {"Content-Type": "multipart/form-data; boundary=b; charset=unicode_escape"}),
    (form(part("name", b"a")), {"Content-Type": "multipart/form-data; boundary=b; charset=idna"}),
    (form(part("files", b"x", "adapter_config.json")), FORM),
    (form(part("name", b"", None)), FORM),
    (form(part("name", b"x", "name.txt")), FORM),
    (form(part("name", b"a"), part("name", b"b")), FORM),
    (form(part("name", b"a" * 5000)), FORM),
    (form(part("name", b"a"), part("description", b"\x00")), FORM),
    (form(part("name", b"a"), part("set_default", b"maybe")), FORM),
    (form(part("name", b"a"), part("set_defualt", b"false")), FORM),
    (form(part("name", b"a"), part("x" * 100_000, b"false")), FORM),
    (form(part("name", b"a" * (2 << 19))), FORM),
    (form(part("name", b"a"), *[part("files", b"x", f"{i}.txt") for i in range(65)]), FORM),
    (form(part("name", b"a"), *[part(f"f{i}", b"x") for i in range(17)]), FORM),
    (form(b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n"), FORM),
    (form(b"--b\r\nContent-Disposition: attachment; name=name\r\n\r\nx\r\n", b"--b\r\n\r\nx\r\n"), FORM),
    (form(b"--b\r\nbad header\r\n\r\nx\r\n"), FORM),
    (form(b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\nx\r\n"), FORM),
]


@pytest.mark.parametrize("case", range(len(MALFORMED)))
async def test_malformed_forms_are_told_and_forgotten(admin: httpx.AsyncClient, case: int) -> None:
    body, headers = MALFORMED[case]
    answer = await admin.post(UPLOADS[0], content=body, headers=headers)
    assert answer.status_code in (400, 413), answer.text
    assert_error(answer, answer.status_code, answer.json()["error"]["code"])
    assert len(answer.content) < 1000


NAMES = [
    "../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x.json", "a\x00b.json", "a%2fb", "..", ".", "", "．．",
    "x" * 300,
    "adapter_config.json\x00.txt", "a\nb", "‮gnp.json", "CON", "~root",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_name_never_leads_out_of_staging(
    running_app: RunningApp, admin: httpx.AsyncClient, good: dict[str, bytes], name: str
) -> None:
    before = {path for path in running_app.folder.rglob("*") if "objects" not in path.parts}
    hostile = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\nroot:x\r\n'
    )
    body = form(part("name", b"names"), hostile, *good_parts(good))
    answer = await admin.post(UPLOADS[1], content=body, headers=FORM)
    assert answer.status_code in (200, 400), answer.text
    assert str(running_app.folder) not in answer.text
    assert {path for path in running_app.folder.rglob("*") if "objects" not in path.parts} == before
    if answer.status_code == 200:
        for finding in answer.json()["findings"]:
            assert finding["code"] in ("path_denied", "file_ignored"), finding


async def test_dangerous_files_are_refused_by_name_and_by_content(
    admin: httpx.AsyncClient, good: dict[str, bytes]
) -> None:
    for name, body in (
        ("README.md", b"\x80\x04\x95pickle"), ("lineage.json", b"PK\x03\x04zip"),
    ):  # fmt: skip
        extra = part("files", body, name)
        answer = await admin.post(
            UPLOADS[0], content=form(part("name", b"danger"), extra, *good_parts(good)), headers=FORM
        )
        error = assert_error(answer, 422, answer.json()["error"]["code"])
        assert error["type"] == "invalid_adapter"
        assert error["findings"][0]["code"] in ("unsafe_format", "code_file"), error
    in_place = [
        part("files", b"x", "adapter_model.bin"),
        part("files", good["adapter_config.json"], "adapter_config.json"),
    ]
    answer = await admin.post(UPLOADS[0], content=form(part("name", b"danger"), *in_place), headers=FORM)
    assert "safe_serialization" in assert_error(answer, 422, "unsafe_format")["message"]
    assert_error(await admin.get("/admin/v1/adapters/danger"), 404, "adapter_not_found")


async def test_what_the_engine_puts_no_lora_on_is_refused_by_name_before_it_is_loaded(
    running_app: RunningApp, admin: httpx.AsyncClient, good: dict[str, bytes]
) -> None:
    module = "model.layers.0.self_attn.q_proj"
    loaded = list(running_app.engine.loaded)
    body = form(part("name", b"untaken"), *good_parts(good))
    running_app.engine.takes_no_lora = frozenset({module})
    try:
        report = (await admin.post(UPLOADS[1], content=body, headers=FORM)).json()
        answer = await admin.post(UPLOADS[0], content=body, headers=FORM)
    finally:
        running_app.engine.takes_no_lora = frozenset()
    [finding] = assert_error(answer, 422, "unsupported_modules")["findings"]
    assert finding == report["findings"][0]
    assert finding["module"] == module
    assert "Train without it" in finding["message"]
    assert running_app.engine.loaded == loaded


CHECKPOINTS = {
    "beside": ("", ["checkpoint-10/"]),
    "below a folder": ("out/", ["checkpoint-10/"]),
    "below folders of Windows": ("C:\\fakepath\\out\\", ["checkpoint-10/"]),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
async def test_a_folder_sent_whole_is_its_highest_adapter(
    admin: httpx.AsyncClient, good: dict[str, bytes], tmp_path: Path, case: str
) -> None:
    """Checkpoints that lie inside have files of the same names; what they hold is another adapter."""
    above, left = CHECKPOINTS[case]
    older = write_adapter(tmp_path / "older", seed=9)
    deeper = [part("files", path.read_bytes(), f"{above}checkpoint-10/{path.name}") for path in older.iterdir()]
    deeper += [part("files", b"x", f"{above}checkpoint-10/global_step/{path.name}") for path in older.iterdir()]
    own = [part("files", body, above + name) for name, body in good.items()]
    for parts in (own + deeper, deeper + own):
        body = form(part("name", b"whole"), *parts)
        report = (await admin.post(UPLOADS[1], content=body, headers=FORM)).json()
        assert [(found["code"], found["severity"]) for found in report["findings"]] == [("file_ignored", "warning")]
        assert all(report["findings"][0]["message"].count(repr(name)) == 1 for name in left)
        answer = await admin.post(UPLOADS[0], content=body, headers=FORM)
        assert answer.status_code in (200, 201), answer.text
        plain = await admin.post(UPLOADS[0], content=form(part("name", b"whole"), *good_parts(good)), headers=FORM)
        assert plain.json()["digest"] == answer.json()["digest"]


async def test_what_a_trainer_leaves_is_named_once_and_left_out(
    running_app: RunningApp, admin: httpx.AsyncClient, good: dict[str, bytes], tmp_path: Path
) -> None:
    others = {"training_args.bin": b"PK\x03\x04", "optimizer.pt": b"\x80\x04.", "tokenizer.json": b"{}", "x.py": b"x"}
    parts = [part("files", body, name) for name, body in others.items()]
    answer = await admin.post(UPLOADS[0], content=form(part("name", b"left"), *parts, *good_parts(good)), headers=FORM)
    assert answer.status_code == 201, answer.text
    warnings = answer.json()["warnings"]
    assert len(warnings) == 1
    assert all(name in warnings[0] for name in others)
    folder = write_adapter(running_app.sources / "trained", seed=1)
    for name, body in others.items():
        (folder / name).write_bytes(body)
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "rng_state.pth").write_bytes(b"\x80\x04.")
    order = {"name": "taken", "source": f"file://{folder}"}
    answer = await admin.post(UPLOADS[0], json=order)
    assert answer.status_code == 201, answer.text
    assert [all(name in text for name in (*others, "checkpoint-10/")) for text in answer.json()["warnings"]] == [True]


async def test_a_form_that_ends_early_makes_no_version(
    running_app: RunningApp, admin: httpx.AsyncClient, good: dict[str, bytes]
) -> None:
    whole = form(part("name", b"short"), *good_parts(good))
    for cut in (len(whole) - 20, len(whole) // 2, 60):
        answer = await admin.post(UPLOADS[0], content=whole[:cut], headers=FORM)
        assert answer.status_code in (400, 422), (cut, answer.text)
    assert_error(await admin.get("/admin/v1/adapters/short"), 404, "adapter_not_found")
    done = await admin.post(UPLOADS[0], content=whole, headers=FORM)
    assert (done.status_code, done.json()["model"]) == (201, "short@1")


async def test_a_form_that_ends_early_leaves_no_file_open(tmp_path: Path) -> None:
    """Also one that is on the disk by then, and those of the parts before it."""
    async with start_app(tmp_path, max_upload_bytes=8 << 20) as running_app, running_app.http(ADMIN_KEY) as admin:
        large = [part("files", bytes(2 << 20), name) for name in ("adapter_model.safetensors", "adapter_config.json")]
        whole = form(part("name", b"short"), *large)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            for cut in (len(whole) - 20, len(whole) * 3 // 4, len(whole) // 3):
                answer = await admin.post(UPLOADS[0], content=whole[:cut], headers=FORM)
                assert answer.status_code in (400, 422), (cut, answer.text)
            gc.collect()
        assert [str(one.message) for one in caught if one.category is ResourceWarning] == []


async def test_an_endless_upload_is_cut_off_at_the_limit(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    limit = running_app.settings.http.max_upload_bytes
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("name", b"endless") + part("files", b"", "adapter_model.safetensors").removesuffix(b"\r\n")
        while True:
            sent += 1 << 16
            yield b"\x00" * (1 << 16)

    for path in UPLOADS:
        sent = 0
        assert_error(await admin.post(path, content=endless(), headers=FORM), 413, "body_too_large")
        assert sent < limit + (1 << 18)
    declared = FORM | {"Content-Length": str(limit + 1)}
    assert_error(await admin.post(UPLOADS[0], content=b"x", headers=declared), 413, "body_too_large")


async def test_the_upload_limit_is_for_uploads_alone(tmp_path: Path) -> None:
    async with (
        start_app(tmp_path, max_body_bytes=1024, max_upload_bytes=1 << 20) as running_app,
        running_app.http(ADMIN_KEY) as http,
    ):
        big = form(part("name", b"a"), part("files", b"x" * 4096, "x"))
        assert (await http.post(UPLOADS[0], content=big, headers=FORM)).status_code == 422
        for path in ("/admin/v1/merges", "/v1/completions", "/admin/v1/adapters/x:load"):
            assert_error(await http.post(path, content=big, headers=FORM), 413, "body_too_large")
        as_json = {"Content-Type": "application/json; x=multipart/form-data"}
        assert_error(await http.post(UPLOADS[0], content=big, headers=as_json), 413, "body_too_large")


async def test_an_upload_whose_client_leaves_is_removed(running_app: RunningApp, good: dict[str, bytes]) -> None:
    async with served(running_app.app) as url:
        host, port = url.removeprefix("http://").split(":")
        body = form(part("name", b"gone"), *good_parts(good))
        head = f"POST /admin/v1/adapters HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
        head += f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body[:-10])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.2)
    async with running_app.http(ADMIN_KEY) as http:
        assert_error(await http.get("/admin/v1/adapters/gone"), 404, "adapter_not_found")


def damaged(tensor_bytes: bytes, header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensor_bytes


async def test_crafted_weights_are_refused_with_findings(admin: httpx.AsyncClient, good: dict[str, bytes]) -> None:
    tensor = {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}
    for weights in (
        b"", b"\xff" * 16, (1 << 60).to_bytes(8, "little") + b"{}", damaged(b"x" * 8, {"a": tensor}),
        damaged(b"", {"a": 5}), encode_safetensors({}, "float32"),
    ):  # fmt: skip
        files = [
            ("files", ("adapter_model.safetensors", weights)),
            ("files", ("adapter_config.json", good["adapter_config.json"])),
        ]
        answer = await admin.post(UPLOADS[0], data={"name": "crafted"}, files=files)
        error = assert_error(answer, 422, answer.json()["error"]["code"])
        assert error["findings"]
        dry = await admin.post(UPLOADS[1], files=files)
        assert (dry.status_code, dry.json()["valid"]) == (200, False)
    for config in (
        b"",
        b"[]",
        b"{",
        b'{"r": 1e999}',
        b"[" * 100_000,
        b'{"r": 2, "r": 3}',
        b"\xff",
        b'{"r": -1}',
        b'{"peft_type": "\\ud800"}',
    ):
        files = [
            ("files", ("adapter_model.safetensors", good["adapter_model.safetensors"])),
            ("files", ("adapter_config.json", config)),
        ]
        answer = await admin.post(UPLOADS[0], data={"name": "crafted"}, files=files)
        assert answer.status_code == 422, (config[:20], answer.text)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a@1", "a:b", "a b", "ａ", "a\u202e", "-a", ".a", "a,b", "a+b", "a*b", "x" * 129, "tiny"]
)
async def test_names_are_plain_and_not_the_base_models(running_app: RunningApp, name: str, tmp_path: Path) -> None:
    async with running_app.http(ADMIN_KEY) as http:
        answer = await push(http, name, write_adapter(tmp_path / "a"))
        status, code = (409, "name_reserved") if name == "tiny" else (400, "invalid_name")
        assert_error(answer, status, code)
        if status == 409:
            assert answer.headers["x-should-retry"] == "false"
        if "/" not in name:
            assert (await http.get(f"/admin/v1/adapters/{name}")).status_code in (400, 404)


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "x", "9" * 30, "1000000000", "1e3", "%00"])
async def test_numbers_that_no_version_has_are_refused(admin: httpx.AsyncClient, number: str) -> None:
    for method in ("GET", "DELETE"):
        answer = await admin.request(method, f"/admin/v1/adapters/x/versions/{number}")
        assert_error(answer, 400, "invalid_request" if number == "%00" else "invalid_value")
    if number.isdigit():
        answer = await admin.patch("/admin/v1/adapters/x", json={"default_version": int(number)})
        assert_error(answer, 400, "invalid_value")


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc", "file:///etc/passwd", "file://../x", "file:///{root}/../base", "file://{root}/%2e%2e/base",
        "file://{root}/link", "file://{root}/a\\b", "file://{root}/．．/base", "file://host{root}", "file://{root}//x",
        "file://{root}/a%00", "/etc", "file:{root}/a", "FILE://{root}", "http://127.0.0.1/x", "s3://bucket/x", "",
        "://", "x" * 4097,
    ],
)  # fmt: skip
async def test_sources_stay_below_their_roots(running_app: RunningApp, admin: httpx.AsyncClient, source: str) -> None:
    outside = running_app.sources / "link"
    if not outside.is_symlink():
        outside.symlink_to(write_adapter(running_app.folder / "outside"))
    for path, extra in ((UPLOADS[0], {"name": "s"}), (UPLOADS[1], {})):
        answer = await admin.post(path, json={"source": source.format(root=running_app.sources)} | extra)
        assert answer.status_code in (400, 403, 404), (source, answer.text)
        assert answer.json()["error"]["code"] in (
            "path_denied",
            "unsupported_source",
            "invalid_value",
            "source_not_found",
        )
        assert str(running_app.folder) not in answer.text


async def test_client_keys_upload_nothing(running_app: RunningApp, tmp_path: Path) -> None:
    async with running_app.http(API_KEY) as http:
        assert_error(await push(http, "x", write_adapter(tmp_path / "a")), 403, "invalid_api_key")


async def test_a_source_without_a_name_is_refused_and_nothing_is_made(
    running_app: RunningApp, admin: httpx.AsyncClient
) -> None:
    source = f"file://{write_adapter(running_app.sources / 'nameless')}"
    for body in ({"source": source}, {"source": source, "name": None}, {"source": source, "name": ""}):
        error = assert_error(await admin.post("/admin/v1/adapters", json=body), 400, "invalid_value")
        assert error["param"] == "name"
    assert_error(await admin.get("/admin/v1/adapters/unnamed"), 404, "adapter_not_found")
    for body in ({"source": source}, {"source": source, "name": "any"}):
        report = await admin.post("/admin/v1/adapters:validate", json=body)
        assert (report.status_code, report.json()["valid"]) == (200, True)


async def test_finite_but_enormous_factors_are_refused(
    admin: httpx.AsyncClient, running_app: RunningApp, tmp_path: Path
) -> None:
    """Before the engine: one request to such an adapter would leave NaN in memory that all requests share."""
    folder = await asyncio.to_thread(write_adapter, tmp_path / "huge", std=0.02e12)
    before = list(running_app.engine.loaded)
    error = assert_error(await push(admin, "huge", folder), 422, "delta_too_large")
    assert {finding["code"] for finding in error["findings"]} == {"delta_too_large"}
    assert "AMALGAM_MAX_DELTA_RATIO" in error["message"] or "the largest" in error["message"]
    assert running_app.engine.loaded == before
