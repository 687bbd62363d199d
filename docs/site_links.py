"""A hook of the site: links to files of the repository that are no pages of it become their paths."""

import re
from pathlib import Path
from typing import Any, Final

_LINK: Final = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace ``[text](../path)`` by the text and the path, where the path leads out of the manual.

    Args:
        markdown: the page.
        page: where it lies.
        config: of the site; knows the manual's folder.
    """
    docs = Path(config["docs_dir"]).resolve()
    folder = (docs / page.file.src_path).parent

    def replaced(found: re.Match[str]) -> str:
        path = (folder / found[2]).resolve()
        if path.is_relative_to(docs):
            return found[0]
        shown = path.relative_to(docs.parent).as_posix()
        text = found[1].strip("`")
        return f"`{shown}`" if text.rstrip("/") == shown else f"{found[1]} (`{shown}`)"

    return _LINK.sub(replaced, markdown)
