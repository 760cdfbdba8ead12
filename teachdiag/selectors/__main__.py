"""Print the page `docs/selectors.md`."""

from teachdiag.selectors.registry import selectors_page

print(selectors_page(), end="")
