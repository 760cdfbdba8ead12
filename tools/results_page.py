"""`make results`: put what was measured on several pairs, whichever way it falls, into docs/results.md."""

import sys
from collections.abc import Sequence
from pathlib import Path

from teachdiag.markdown import markdown_table
from tools.off_support import off_support_table
from tools.readme_result import ROOT, put

PAGE = ROOT / "docs/results.md"


def main(runs: Sequence[Path]) -> None:
    """Replace what stands between the page's marks; `teachdiag figures RUN RUN ...` has compared these very runs."""
    put(PAGE, "claims", (runs[0].parent / "comparison/claims.md").read_text().rstrip())
    put(PAGE, "support", markdown_table(off_support_table(runs)))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
