"""The table of all SQL questions."""

from typing import Final

from amalgam.demo.sql_filters import FILTERS
from amalgam.demo.sql_template import SqlTemplate
from amalgam.demo.sql_totals import TOTALS

SQL_TEMPLATES: Final[tuple[SqlTemplate, ...]] = FILTERS + TOTALS
