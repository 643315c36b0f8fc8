"""What the pages of the repository point at is there."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder, pattern in ((".", "*.md"), ("docs", "**/*.md"), ("recipes", "*.md"), ("src", "**/*.md"))
    for path in (PROJECT / folder).glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_no_link_of_a_page_leads_nowhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in LINK.findall(text) if not re.match(r"\w+:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []
