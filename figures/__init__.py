"""Estimates in, pictures out. These modules draw and compute nothing."""

if __name__ == "figures":
    raise ImportError("the import name is teachdiag.figures: install the project with 'pip install -e .'")
