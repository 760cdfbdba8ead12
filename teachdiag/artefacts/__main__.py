"""Print the page `docs/artefacts.md`."""

from teachdiag.artefacts import data_dictionary

print(data_dictionary(), end="")
