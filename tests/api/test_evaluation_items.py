"""What an evaluation asks, given back page by page."""

from pathlib import Path

from tests.api.test_evaluations import submit
from tests.support.running_app import ADMIN_KEY, assert_error, push, start_app, write_adapter


async def test_what_is_asked_is_given_page_by_page(tmp_path: Path) -> None:
    async with start_app(tmp_path) as running_app, running_app.http(ADMIN_KEY) as http:
        assert (await push(http, "sql", write_adapter(tmp_path / "sql"))).status_code == 201
        chat = {"messages": [{"role": "user", "content": "hi"}], "reference": "x"}
        items = [{"prompt": "one", "task": "a"}, chat, {"prompt": "three"}]
        url = f"/admin/v1/evaluations/{await submit(http, items=items)}"
        first = (await http.get(f"{url}/items", params={"limit": 2})).json()
        rest = (await http.get(f"{url}/items", params={"cursor": first["next_cursor"]})).json()
        assert (first["next_cursor"], rest["next_cursor"]) == ("1", None)
        found = first["data"] + rest["data"]
        assert [(one["item"], one["task"], one["prompt"]) for one in found] == [
            (0, "a", "one"),
            (1, "all", None),
            (2, "all", "three"),
        ]
        assert (found[1]["messages"], found[1]["reference"]) == (chat["messages"], "x")
        assert (await http.get(f"{url}/items", params={"cursor": "99"})).json() == {"data": [], "next_cursor": None}
        assert_error(await http.get("/admin/v1/evaluations/nobody/items"), 404, "evaluation_not_found")
