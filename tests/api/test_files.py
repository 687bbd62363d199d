"""A version's files out of the server again: the same bytes, at any time, and whole."""

import io
import json
import tarfile
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from amalgam.cli.adapters import app
from amalgam.cli.recipe_options import open_inputs
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.store.adapter_archive import unpack
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import open_tensors
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, served, write_adapter

PATH = "/admin/v1/adapters/out/versions/1/files"


@pytest.fixture
async def folder(running_app: RunningApp, admin: httpx.AsyncClient, tmp_path: Path) -> Path:
    folder = write_adapter(tmp_path / "given", seed=3)
    (folder / "README.md").write_text("# What it is\n")
    answer = await push(admin, "out", folder)
    assert answer.status_code in (200, 201), answer.text
    return folder


async def test_the_files_are_those_that_were_sent(folder: Path, admin: httpx.AsyncClient) -> None:
    answer = await admin.get(PATH)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        found = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert found[name] == (folder / name).read_bytes()
    version = (await admin.get("/admin/v1/adapters/out/versions/1")).json()
    assert answer.headers["etag"] == f'"{version["digest"]}"'
    assert (await admin.get(PATH)).content == answer.content


async def test_whoever_has_them_is_told_so(folder: Path, admin: httpx.AsyncClient) -> None:
    etag = (await admin.get(PATH)).headers["etag"]
    again = await admin.get(PATH, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)


async def test_only_the_admin_key_opens_it(folder: Path, running_app: RunningApp) -> None:
    async with running_app.http(API_KEY) as http:
        assert (await http.get(PATH)).status_code == 403
    async with running_app.http(ADMIN_KEY) as http:
        assert_error(await http.get(PATH.replace("/1/", "/99/")), 404, "version_not_found")
        assert_error(await http.get(PATH.replace("out", "none")), 404, "adapter_not_found")


async def test_pull_brings_a_folder_that_can_be_pushed_again(
    folder: Path, running_app: RunningApp, tmp_path: Path
) -> None:
    async with served(running_app.app) as url:

        def pull(*arguments: str) -> object:
            return CliRunner().invoke(app, ["pull", *arguments, "--url", url, "--key", ADMIN_KEY])

        for name in ("out", "out@1"):
            target = tmp_path / name
            done = await anyio.to_thread.run_sync(pull, name, "-o", str(target))
            assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                assert (target / file).read_bytes() == (folder / file).read_bytes()
        again = await anyio.to_thread.run_sync(pull, "out", "-o", str(target))
        assert (again.exit_code, "not empty" in again.output) == (2, True)  # type: ignore[attr-defined]
        missing = await anyio.to_thread.run_sync(pull, "none", "-o", str(tmp_path / "x"))
        assert (missing.exit_code, "adapter_not_found" in missing.output) == (1, True)  # type: ignore[attr-defined]


async def test_pull_as_mlx_reads_it_and_back_again(folder: Path, running_app: RunningApp, tmp_path: Path) -> None:
    """By mlx-lm's rule, y = x·W + scale·(x·lora_a)·lora_b, it is the same delta to 1e-6; so is what is read back."""
    target = tmp_path / "mlx"
    async with served(running_app.app) as url:
        arguments = ["pull", "out", "-o", str(target), "--format", "mlx", "--url", url, "--key", ADMIN_KEY]
        done = await anyio.to_thread.run_sync(CliRunner().invoke, app, arguments)
    assert done.exit_code == 0, done.output
    assert {path.name for path in target.iterdir()} == {"adapters.safetensors", "adapter_config.json"}
    tensors = load_file(target / "adapters.safetensors")
    given = open_tensors(folder, read_peft_folder(folder, None).require())
    back = open_inputs(Recipe(inputs=(RecipeInput(adapter=str(target)),)))[str(target)]
    assert set(back.header.modules) == set(given.header.modules)
    for name, module in given.header.modules.items():
        a, b = given.factors(name)
        expected = module.scaling * (b.double() @ a.double())
        written = (tensors[f"{name}.lora_a"].double() @ tensors[f"{name}.lora_b"].double()).mT
        c, d = back.factors(name)
        read = back.header.modules[name].scaling * (d.double() @ c.double())
        for found in (written, read):
            assert float((found - expected).norm() / expected.norm()) < 1e-6


async def test_pull_as_llama_cpp_reads_it_and_back_again(folder: Path, running_app: RunningApp, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    heads = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
    (base / "config.json").write_text(json.dumps(heads))
    given = open_tensors(folder, read_peft_folder(folder, None).require())
    async with served(running_app.app) as url:

        def pull(*arguments: object) -> object:
            return CliRunner().invoke(app, ["pull", "out", *map(str, arguments), "--url", url, "--key", ADMIN_KEY])

        refused = await anyio.to_thread.run_sync(pull, "-o", tmp_path / "x.gguf")
        assert (refused.exit_code, "Name the folder of the base model" in refused.output) == (2, True)  # type: ignore[attr-defined]
        assert not (tmp_path / "x.gguf").exists()
        for more in (("-o", tmp_path / "x.gguf"), ("-o", tmp_path / "y", "--format", "gguf")):
            done = await anyio.to_thread.run_sync(pull, *more, "--base", base)
            assert done.exit_code == 0, done.output  # type: ignore[attr-defined]
    for path in (tmp_path / "x.gguf", tmp_path / "y" / "y.gguf"):
        back = open_inputs(Recipe(inputs=(RecipeInput(adapter=str(path)),)))[str(path)]
        assert set(back.header.modules) == set(given.header.modules)
        for name, module in given.header.modules.items():
            (a, b), (c, d) = given.factors(name), back.factors(name)
            expected = module.scaling * (b.double() @ a.double())
            read = back.header.modules[name].scaling * (d.double() @ c.double())
            assert float((read - expected).norm() / expected.norm()) < 1e-6


async def test_what_was_damaged_on_the_way_is_refused(folder: Path, admin: httpx.AsyncClient, tmp_path: Path) -> None:
    answer = await admin.get(PATH)
    digest = answer.headers["etag"].strip('"')
    flipped = bytearray(answer.content)
    flipped[len(flipped) // 2] ^= 1
    for content in (bytes(flipped), answer.content[: len(answer.content) // 2], b"", b"x" * 2000):
        target = tmp_path / "target"
        target.mkdir(exist_ok=True)
        with pytest.raises(ArtifactDamaged):
            unpack(io.BytesIO(content), target, digest)


def test_names_that_no_adapter_has_are_passed_over(tmp_path: Path) -> None:
    hostile = io.BytesIO()
    with tarfile.open(fileobj=hostile, mode="w") as tar:
        for name in ("../evil", "/etc/evil", "evil.py"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
    hostile.seek(0)
    (tmp_path / "in").mkdir()
    with pytest.raises(ArtifactDamaged):
        unpack(hostile, tmp_path / "in", "0" * 64)
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]
