"""What the pages say of other projects names where it was read: each row, or each cell, links to that project's documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
CHECKED: Final = "checked in November 2026"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table that begins with this heading, a list for each row."""
    text = (ROOT / page).read_text("utf-8").partition(heading)[2].partition("\n\n")[0]
    cut = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in text.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in cut]


def test_the_readme_and_the_first_page_compare_alike() -> None:
    readme = rows("README.md", "| | durable | DBOS")
    first = rows("docs/index.md", "| | durable | DBOS")
    assert [[cell.replace("](docs/", "](") for cell in row] for row in readme] == first
    for page in ("README.md", "docs/index.md"):
        assert CHECKED in " ".join((ROOT / page).read_text("utf-8").split())


def test_each_cell_about_another_project_links_to_where_it_was_read() -> None:
    for row in rows("docs/index.md", "| | durable | DBOS"):
        for cell in row[2:]:
            assert "](https://" in cell, row


@pytest.mark.parametrize(
    ("page", "heading", "address"),
    [
        ("docs/coming-from-dbos.md", "| DBOS |", "https://docs.dbos.dev/"),
        ("docs/coming-from-temporal.md", "| Temporal |", "https://docs.temporal.io/"),
        ("docs/coming-from-celery.md", "| Celery |", "https://docs.celeryq.dev/"),
    ],
)
def test_each_row_of_a_coming_from_page_links_to_what_it_compares_with(page: str, heading: str, address: str) -> None:
    told = rows(page, heading)
    assert len(told) > 10
    for row in told:
        assert f"]({address}" in row[0], row


@pytest.mark.parametrize("project", ["awaitly", "celery", "dbos", "temporal"])
def test_a_coming_from_page_says_when_it_was_checked(project: str) -> None:
    text = " ".join((ROOT / "docs" / f"coming-from-{project}.md").read_text("utf-8").split())
    assert CHECKED in text
