"""`make results`: put what was measured on several pairs, whichever way it falls, into docs/results.md.

A pair takes hours, and not every machine can run them all at once: what each of the given runs shows is kept in a file
of its own in docs/study-real/measured/, and the page is made from all of these.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.lookup import lookup_text
from teachdiag.analysis.kinds.efficiency import headline_table, real_table
from teachdiag.figures.paper_claims import Answer, answers, wide_table
from teachdiag.figures.run_tables import load_tables
from teachdiag.jsontext import parse_json
from teachdiag.markdown import markdown_table
from teachdiag.runs import Stage
from teachdiag.settings import HEADLINE_BUDGETS, MATCHES
from teachdiag.tables import rows_where, write_text
from tools.off_support import off_support_table
from tools.readme_result import ROOT, put

PAGE = ROOT / "docs/results.md"
MEASURED = ROOT / "docs/study-real/measured"
PLACES = ("prefix", "iw_opd", "pw_opsd")  # selectors by place: the first positions, early ones, late ones
_KLS = {"gain": "KL(teacher to student)", "gain_reverse": "KL(student to teacher)"}
_DROPS = {outcome: f"drop of {kl}" + ", the loss" * (outcome == "gain_reverse") for outcome, kl in _KLS.items()}
RUNS = ("qwen", "gemma", "demo", "privileged", "long")  # in the order of the page

Rows = list[dict[Any, Any]]


def main(runs: Sequence[Path]) -> None:
    """Keep what the runs show, and replace what stands between the page's marks."""
    for run in runs:
        write_text(json.dumps(shown_by(run), indent=1, ensure_ascii=False) + "\n", MEASURED / f"{run.name}.json")
    for name, table in page_tables([parse_json(file.read_text(), finite=False) for file in _kept()]).items():
        put(PAGE, name, table)


def shown_by(run: Path) -> dict[str, Rows]:
    """Return what a run shows, by the name of its place in the page, each row with the run's name.

    Of one that is not analysed yet these are what its bank shows, and the minutes.
    """
    texts, claims = {"support": off_support_table([run]), "minutes": minutes_table(run)}, list[Answer]()
    if (run / "analyze.json").exists():
        tables = load_tables(run)
        texts |= {"kept": by_outcome(headline_table, tables.efficiency)}
        texts |= {"steps": by_outcome(real_table, tables.efficiency)}
        texts |= {"places": by_outcome(places_table, tables.efficiency)}
        texts |= {"yardsticks": yardsticks_table(tables.estimates)}
        claims = answers({run.name: tables})
    for table in texts.values():
        table["run"] = run.name
    return {"claims": [asdict(answer) for answer in claims]} | {
        name: table.to_dict("records") for name, table in texts.items()
    }


def page_tables(measured: Sequence[dict[str, Rows]]) -> dict[str, str]:
    """Return the tables of the page in Markdown, by the names of their places.

    Args:
        measured: what `shown_by` returned of each run, in the order of the page.
    """
    claims = [Answer(**row) for of_run in measured for row in of_run["claims"]]
    pages = {"claims": wide_table(claims, list(dict.fromkeys(answer.run for answer in claims)))}
    for name in ("yardsticks", "kept", "steps", "places", "support", "minutes"):
        table = pd.DataFrame([row for of_run in measured for row in of_run.get(name, [])])
        table.insert(0, "run", table.pop("run"))
        pages[name] = markdown_table(table.fillna("-"))
    return pages


def by_outcome(table_of: Callable[[pd.DataFrame], pd.DataFrame], efficiency: pd.DataFrame) -> pd.DataFrame:
    """Return a table of each outcome's rows, one under the other, with the KL whose fall is the gain."""
    tables = [
        table_of(rows_where(efficiency, outcome=outcome)).assign(**{"gain in": words})
        for outcome, words in _KLS.items()
    ]
    return pd.concat(tables, ignore_index=True)


def yardsticks_table(estimates: pd.DataFrame) -> pd.DataFrame:
    """Return what the real step and that towards shuffled teacher rows gain on the bank, in either KL, nats."""
    rows = rows_where(estimates, analysis="mean")
    return pd.DataFrame(
        [
            {"teacher rows": words, "positions": place}
            | {name: lookup_text(rows, update=update, term=term, outcome=outcome) for outcome, name in _DROPS.items()}
            for update, words in (("one_step", "the true ones"), ("shuffled_teacher", "shuffled"))
            for term, place in (("bank", "all"), ("q3", "Q3"))
            if (rows["update"] == update).any()
        ]
    )


def places_table(efficiency: pd.DataFrame) -> pd.DataFrame:
    """Return how much more than random tokens early and late ones keep of the whole batch's gain, where it is known."""
    rows = rows_where(efficiency, statistic="share_vs_random")
    rows = rows[rows["selector"].isin(PLACES)]
    budgets = [budget for budget in HEADLINE_BUDGETS if (rows["budget"] == budget).any()]
    return pd.DataFrame(
        [
            {"selector": name, "at": words}
            | {f"{b:.0%}": lookup_text(rows, selector=name, match=match, budget=b) for b in budgets}
            for match, words in MATCHES.items()
            for name in PLACES
            if ((rows["selector"] == name) & (rows["match"] == match)).any()
        ]
    )


def minutes_table(run: Path) -> pd.DataFrame:
    """Return the minutes that every stage of a run took, as it recorded them, in one row."""
    return pd.DataFrame([dict(_minutes(run))])


def _minutes(run: Path) -> Iterator[tuple[str, str]]:
    for stage in ("capture", "probes/one_step", "probes/efficiency", "probes/efficiency_reverse", "analyze"):
        seconds = Stage(run, stage).seconds()
        if seconds is not None:
            yield stage.removeprefix("probes/"), f"{seconds / 60:.1f}"


def _kept() -> Iterator[Path]:
    for name in RUNS:
        if (file := MEASURED / f"{name}.json").exists():
            yield file


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
