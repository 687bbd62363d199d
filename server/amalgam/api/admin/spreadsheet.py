"""Cells of tables that people open in spreadsheets."""

from typing import Any, Final

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet takes these for the start of a formula, or skips them before one (OWASP, "CSV Injection")."""


def harmless(cell: Any) -> Any:
    """``cell``; a text that a spreadsheet would run gets an apostrophe in front. A number may begin with a minus."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
