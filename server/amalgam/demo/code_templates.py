"""The table of all code questions."""

from typing import Final

from amalgam.demo.code_numbers import NUMBERS
from amalgam.demo.code_records import RECORDS
from amalgam.demo.code_template import CodeTemplate
from amalgam.demo.code_texts import TEXTS

CODE_TEMPLATES: Final[tuple[CodeTemplate, ...]] = NUMBERS + TEXTS + RECORDS
