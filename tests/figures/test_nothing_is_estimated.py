"""Figures draw tables and estimate nothing: no statistic is called there, and no library of statistics imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import teachdiag.figures

ROOM = Path(teachdiag.figures.__file__).parent
LIBRARIES = ("scipy", "statsmodels", "teachdiag.scores", "teachdiag.formulas.Score")
STATISTICS = {
    *("mean", "nanmean", "average", "median", "quantile", "percentile", "nanquantile", "std", "var", "sem"),
    *("corr", "corrcoef", "cov", "corrwith", "spearmanr", "rank", "rankdata", "mid_ranks", "norm", "q3_mask", "select"),
    *("histogram", "bincount", "cut", "qcut", "agg", "aggregate", "transform", "describe", "merge", "polyfit", "lstsq"),
}


def estimates(source: str) -> Iterator[str]:
    """Yield every statistic that some code calls, and every library of statistics that it imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in STATISTICS:
                yield f"{name} in line {node.lineno}"
        names = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.startswith(LIBRARIES))


def test_figures_estimate_nothing() -> None:
    files = sorted(ROOM.rglob("*.py"))
    assert len(files) > 20
    assert {file.name: calls for file in files if (calls := list(estimates(file.read_text())))} == {}


def test_an_estimate_is_seen() -> None:
    code = "from scipy.stats import rankdata\nx = frame['gain'].abs().quantile(0.9) + np.median(y)\nax.plot(x)"
    assert list(estimates(code)) == ["scipy.stats.rankdata", "quantile in line 2", "median in line 2"]
