"""Kind placebo: what every headline number prints over many draws of each placebo, for people."""

import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import row_interval
from teachdiag.analysis.kinds.kind import Estimates, Inputs, KindAnalysis, Results, Tables
from teachdiag.analysis.kinds.placebo_panel import DRAWN, MEAN_GAIN, panel_rows, panel_sentences
from teachdiag.analysis.kinds.steps import LADDER, measured_updates, step_text
from teachdiag.analysis.step.step_length import ladder_table, obstacle
from teachdiag.artefacts import PLACEBO_PANEL
from teachdiag.settings import KINDS

_COMPACT = ("mean gain", "beta_L", "beta_I", "beta_L - beta_I", "beta_L - beta_I per unit of norm", "released gap")


class Placebo(KindAnalysis):
    """The step with many draws of each placebo."""

    title = "Placebos of the step"
    question = "Is it the step, or the statistic?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return the panel of headline statistics."""
        return {PLACEBO_PANEL: panel_rows(inputs, self.probe_id)}

    def text(self) -> str:
        """Say how the step was taken, and what the ranges of its placebos are."""
        draws = self.settings["draws"] or KINDS[self.record.kind].draws
        return (
            f"{step_text(self.record)} `shuffled_rollouts` learns from the true teacher on responses dealt to other "
            f"prompts: no null, and nothing is judged against it. Each was drawn {draws} times. "
            "Brackets are 95% ranges for one more draw on other prompts, wide where draws are few. A number survives "
            "if its difference from every null placebo, over draws and prompts together, leaves 0 out on its own side. "
            "A star marks the placebos that it does not lie beyond."
        )

    def sentences(self, results: Results) -> list[str]:
        """Say of each statistic whether it survives, unless the step was too long to judge."""
        rows = [{str(name): value for name, value in row.items()} for row in self._panel(results).to_dict("records")]
        return self._obstacle(results) or panel_sentences(rows)

    def tables(self, results: Results) -> Tables:
        """Return the panel, and the step's ladder."""
        panel = panel_table(results.panel, self.probe_id)
        return {"Headline statistics beside placebos": panel, LADDER: ladder_table(self.record)}

    def central_tables(self, results: Results) -> Tables:
        """Return which statistics survive."""
        panel = panel_overview(results.panel, self.probe_id)
        return {f"Headline statistics beside placebos, {self.probe_id}": panel}

    def headlines(self, results: Results) -> list[str]:
        """Say which statistics survive all their placebos, and which placebos show the others too."""
        return self._obstacle(results) or overview_sentences(self._panel(results))

    def compact_tables(self, results: Results) -> Tables:
        """Return the panel's first statistics."""
        table = panel_table(results.panel, self.probe_id)
        return {"Headline statistics beside their placebos": table[table["statistic"].isin(_COMPACT)]}

    def measured(self, title: str) -> list[Grid | str]:
        """Return mean gains of the step and of every draw of its placebos."""
        return measured_updates(self.record.results, title)

    def _panel(self, results: Results) -> pd.DataFrame:
        return results.panel[results.panel["probe_id"] == self.probe_id]

    def _obstacle(self, results: Results) -> list[str]:
        """Say why nothing is judged, if so: the step was too long."""
        rows = self._panel(results)
        rows = rows[rows["statistic"] == MEAN_GAIN]
        mean, judged = float(rows["estimate"].iloc[0]), rows["survives"].dropna()
        harmed = mean < 0 and len(judged) > 0 and bool(judged.all())
        reason = obstacle(self.record, f"{mean:.3g}", harmed=harmed)
        return [reason[1]] if reason else []


def panel_table(panel: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return each headline statistic beside the mean of every placebo's draws and their range for one more, as text.

    A star marks placebos that the real number does not lie beyond.
    """
    of_probe = panel[panel["probe_id"] == probe_id]
    return pd.DataFrame(
        [
            {"statistic": statistic, "real step": _value(rows.iloc[0])}
            | {row["update"]: _range(row) for _, row in rows.iterrows()}
            | {"survives": _status(rows)}
            for statistic, rows in of_probe.groupby("statistic", sort=False)
        ]
    ).fillna("-")


def panel_overview(panel: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return each headline statistic and the placebos that it does not lie beyond, as text."""
    of_probe = panel[panel["probe_id"] == probe_id]
    return pd.DataFrame(
        [
            {"statistic": statistic, "real step": _value(rows.iloc[0]), "survives": _status(rows)}
            | {"not beyond": ", ".join(rows[rows["survives"] == False]["update"]) or "-"}  # noqa: E712 (nulls)
            for statistic, rows in of_probe.groupby("statistic", sort=False)
        ]
    )


def overview_sentences(panel: pd.DataFrame) -> list[str]:
    """Say which headline statistics survive all their placebos, and which placebos show the others too."""
    survivors, others = [], []
    for statistic, rows in panel.groupby("statistic", sort=False):
        shown = rows[rows["survives"] == False]  # noqa: E712 (null where there is nothing to compare with)
        number = f"{statistic} {rows['estimate'].iloc[0]:.3g}"
        if len(shown):
            others.append(f"{number} ({', '.join(shown['update'])})")
        elif rows["survives"].notna().any():
            survivors.append(number)
    count = f"{len(survivors)} of {len(survivors) + len(others)}"
    sentences = [f"Beyond every null placebo, {count} headline statistics: {'; '.join(survivors) or 'none'}."]
    sentences += [f"Not beyond the placebos in brackets: {'; '.join(others)}."] * bool(others)
    means = panel[panel["statistic"] == MEAN_GAIN]
    dealt = means[(means["update"] == "shuffled_rollouts") & (means["n_draws"] > 0)]
    return sentences + [
        f"No null: the true teacher on responses dealt to other prompts gains {row['draw_mean']:.3g} nats, where the "
        f"student's own rollouts gain {row['estimate']:.3g}."
        for row in dealt.to_dict("records")
    ]


def _status(rows: pd.DataFrame) -> str:
    known = rows["survives"].dropna()
    if known.empty:
        return "not comparable"
    return "yes" if known.astype(bool).all() else "no"


def _value(row: pd.Series) -> str:
    return f"{row_interval(row)}{' nats' if row['unit'] == 'nats' else ''}"


def _range(row: pd.Series) -> str:
    if row["n_draws"] == 0:
        return "-"
    text = str(row_interval(row, DRAWN))
    return text if pd.isna(row["survives"]) or row["survives"] else f"{text} *"
