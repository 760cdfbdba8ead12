"""Models in, tables out: rollouts, scoring, updates. Needs the extra `teachdiag[models]`."""

if __name__ == "diagnostics":
    raise ImportError("the import name is teachdiag.diagnostics: install the project with 'pip install -e .'")
