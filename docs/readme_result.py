"""`make readme`: put what was measured on the embedded pairs, whichever way it falls, into the README.

The first run gives its real step and the picture; all of them give their studies of single tokens and of selectors.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from teachdiag.analysis.report_block import result_block, study_block

ROOT = Path(__file__).parents[1]
PICTURE = Path("docs/demo_coefficients.png")


def main(runs: Sequence[Path]) -> None:
    """Replace what stands between the README's marks, and the picture."""
    shutil.copy(runs[0] / "figures/coefficients.png", ROOT / PICTURE)
    picture = f"![Standardised coefficients of the demo's real step and its placebos]({PICTURE})"
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, block in {"result": f"{picture}\n\n{result_block(runs[0])}", "study": study_block(runs)}.items():
        marks = rf"(<!-- {name}:begin -->\n).*(<!-- {name}:end -->)"
        text = re.sub(marks, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
