"""The README stays short, and the documentation site builds, whole, without a warning, and loads nothing."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from stages import ROOT

from tools.readme_result import PAGES
from tools.refusals import refusals
from tools.results_page import PAGE

README = (ROOT / "README.md").read_text()
TOKENIZERS = "docs/tokenizers.md"
MARKED = re.compile(r"<!-- (\w+):begin -->\n(.*?)<!-- \1:end -->", re.DOTALL)


def test_the_readme_is_short_and_so_is_what_is_generated_in_it() -> None:
    assert len(README.splitlines()) <= 160
    blocks = {name: block.splitlines() for name, block in MARKED.findall(README)}
    assert set(blocks) == {name for name, page in PAGES.items() if page == "README.md"}
    assert {name: len(lines) for name, lines in blocks.items() if len(lines) > 15} == {}
    assert README.count("![") == 1  # one picture


def test_every_link_of_the_readme_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(targets) > 15
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(
    ("name", "page"),
    [*PAGES.items(), ("claims", PAGE), ("support", PAGE), ("pairs", TOKENIZERS), ("controls", TOKENIZERS)],
)
def test_what_was_measured_has_one_place(name: str, page: str | Path) -> None:
    text = (ROOT / page).read_text()
    assert [found for found, _ in MARKED.findall(text)].count(name) == 1
    assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1


def test_the_page_of_questions_quotes_what_the_code_says() -> None:
    said = {sentence for sentences in refusals().values() for sentence in sentences}
    assert len(said) > 200
    page = (ROOT / "docs/faq.md").read_text()
    quoted = re.findall(r"^> (.+)$", page, re.MULTILINE)
    assert len(quoted) > 30
    assert [sentence for sentence in quoted if sentence not in said] == []
    assert "<!-- every refusal:" in page


class Loaded(HTMLParser):
    """What a page loads by itself, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.leads: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads |= {value for name in ("src", "srcset", "poster") if (value := values.get(name))}
        if value := values.get("href"):
            (self.leads if tag == "a" else self.loads).add(value)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_is_read_without_a_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--keep-going", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*build, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    site = tmp_path / "site"
    pages = sorted(site.glob("*.html"))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} < {page.stem for page in pages}
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert [url for url in loaded.loads if re.match(r"(https?:)?//", url)] == [], page.name
        assert [url for url in loaded.loads if not (site / re.sub(r"[?#].*", "", url)).exists()] == [], page.name
        assert not any(url.startswith("/") for url in loaded.leads), page.name
        if page.name == "search.html":  # a script is loaded from disk, which a page may not be
            assert "searchindex.js" in loaded.loads
    questions = (site / "faq.html").read_text()
    assert all(title.rstrip(".") in questions for title in refusals())
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), style.name
