"""Tables in, estimates out: regressions, predictive validity, placebos, the verdict. No torch."""

if __name__ == "analysis":
    raise ImportError("the import name is teachdiag.analysis: install the project with 'pip install -e .'")
