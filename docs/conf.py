"""The documentation site: Markdown of this folder, and docstrings. `make docs` builds it; warnings are errors."""

from importlib import metadata

project = "teachdiag"
copyright = "the teachdiag authors"
release = metadata.version("teachdiag")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["study/*", "study-real/*", "train/*"]  # recipes, not pages
suppress_warnings = ["myst.xref_ambiguous"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings are checked, as links to pages are

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = "teachdiag"
html_copy_source = False
html_show_sphinx = False
