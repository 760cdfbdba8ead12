"""The documentation site: Markdown of this folder, and docstrings. `make docs` builds it; warnings are errors."""

import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.refusals import refusals_page

project = "teachdiag"
copyright = "the teachdiag authors"
release = metadata.version("teachdiag")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["study-real/*", "train/*"]  # recipes, not pages

myst_heading_anchors = 3  # links to headings are checked, as links to pages are

napoleon_use_ivar = True  # attributes of a class as one list
autodoc_member_order = "bysource"
default_role = "code"  # what docstrings have in backticks

highlight_language = "sh"
smartquotes = False  # two hyphens begin an option

html_theme = "furo"
html_title = "teachdiag"
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it would fetch the pages, which a browser refuses of files on disk


def setup(app: Sphinx) -> None:
    """Put every sentence with which the code refuses an input into the page of questions."""
    app.connect("source-read", _fill_in)


def _fill_in(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "faq":
        before, mark, after = source[0].partition("<!-- every refusal:")
        source[0] = before + refusals_page() + after.partition("-->")[2] if mark else source[0]
