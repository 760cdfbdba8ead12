"""Print the page `docs/selectors.md`."""

from teachdiag.selectors.catalogue import selectors_page

print(selectors_page(), end="")
