"""What a stage prints for people when it has ended: its summary as short tables and lines."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 124  # columns that the analysis tables need to stay readable

Summary = dict[str, Any]


def show_capture(summary: Summary, run: Path) -> None:
    """Print how large the bank is, and how far apart the models are on it."""
    bank, update = (summary["contexts"].get(split, 0) for split in ("bank", "update"))
    print(
        f"{run}: {bank} bank and {update} update contexts, {summary['positions']['bank']} bank positions\n"
        f"mean forward KL {_nats(summary.get('bank_mean_forward_kl'))}, mean C (K=16) "
        f"{summary['bank_mean_compatibility_k16']:.3f}, mean student entropy "
        f"{summary['bank_mean_student_entropy']:.3f} nats"
    )
    if "grades" in summary:
        print(f"bank responses: {', '.join(f'{n} {grade}' for grade, n in summary['grades']['bank'].items())}")


def _nats(value: float | None) -> str:
    return "unknown (the teacher's engine gives lists alone)" if value is None else f"{value:.4f} nats"


def show_probe(summary: Summary, run: Path) -> None:
    """Print what a probe measured, as its kind has it."""
    from teachdiag.analysis.bank.measurements import Record
    from teachdiag.analysis.kinds.kind import analysis_of

    probe = analysis_of(Record(summary["probe_id"], summary["kind"], {}, summary))
    for part in probe.measured(f"{run}: probe {summary['probe_id']}"):
        _console().print(part)
    for doubt in summary.get("doubts", []):
        print(f"Beware: {doubt}")


def show_analysis(summary: Summary, run: Path) -> None:
    """Print the first page, and the central tables of what it does not tell of; or where the released code's are."""
    if "verdict" not in summary:
        print(f"{run}: {len(summary['tables'])} files in {run / 'analysis/released'}")
        return
    from teachdiag.analysis.report.summary import first_lines, terminal_tables

    for line in first_lines(run):
        print(line)
    console = _console(max(Console().width, _WIDTH))
    for table in terminal_tables(run):
        console.print(table)


def show_models(summary: Summary, run: Path) -> None:
    """Print how each model answered the held-out prompts."""
    table = _table(f"{run}: answers to held-out prompts", "model", "budget", "seed", "right", "unparseable")
    for row in summary["models"]:
        named = row["arm"], *("-" if row[key] is None else f"{row[key]:g}" for key in ("budget", "seed"))
        table.add_row(*named, f"{row['right']:.1%}", f"{row['unparseable']:.1%}")
    _console().print(table)


def show_figures(summary: Summary, run: Path) -> None:
    """Print where figures and tables are."""
    print(f"{run}: {len(summary['files'])} files in {run / 'figures'} and {run / 'tables'}")


def show_report(summary: Summary, run: Path) -> None:
    """Print where the page is."""
    shown = f"{summary['contexts']} contexts in the token view"
    print(f"{run}: {summary['report']}, {summary['size'] / 1e6:.1f} MB, {shown}")


def show_import(summary: Summary) -> None:
    """Print how many rollouts came in, and how they ended."""
    prompts = ", ".join(f"{count} {split}" for split, count in summary["prompts"].items())
    ends = ", ".join(f"{count} {end}" for end, count in summary["ends"].items() if count)
    print(f"{summary['file']}: {summary['contexts']} contexts of {prompts} prompts; finish_reason {ends}")


def show_losses(summary: Summary) -> None:
    """Print how near each loss's expected gradient is to those of both KLs, and a sentence on each of the user's."""
    columns = "cos KL(p || q)", "cos KL(q || p)", "bias", "noise", "no gradient", "found"
    table = _table(f"{summary['run']}: {summary['tokens']} tokens; p student, q teacher", "loss", *columns)
    for group in ("losses", "references"):
        for loss in summary[group]:
            numbers = (
                "-" if loss[key] is None else f"{loss[key]:.3g}" for key in ("reverse", "forward", "bias", "noise")
            )
            table.add_row(loss["name"], *numbers, f"{loss['nothing']:.0%}", loss["finding"] or "teaches")
        table.add_section()
    _console().print(table)
    for loss in summary["losses"]:
        print(f"{loss['name']}: {loss['sentence']}")


def show_timeline(summary: Summary) -> None:
    """Print what a monitored training's looks say, and where the page is."""
    for sentence in summary["sentences"]:
        print(sentence)
    print(f"{len(summary['steps'])} looks: {summary['page']}")


def show_teachers(summary: Summary) -> None:
    """Print what each teacher of a bank measures, how far that is from the first, and what to make of it."""
    from teachdiag.analysis.teachers.page import terminal_parts

    for part in terminal_parts(summary):
        _console(max(Console().width, _WIDTH)).print(part)
    print(f"Written: {summary['files'][-1]}")


def show_plan(summary: Summary) -> None:
    """Print what a planned run takes, the layout that is recommended, and which machine this was extrapolated from.

    Of a plan from an earlier run, print what an effect on each claim needs.
    """
    if "claims" in summary:
        _show_needs(summary)
        return
    layout = summary["layout"]
    table = _table(f"{summary['positions']:,} positions, {summary['contexts']:,} contexts", "what it takes", "")
    for name, amount in _amounts(summary):
        table.add_row(name, amount)
    _console().print(table)
    probe = ", ".join(f"{n} {side}" for side, n in summary["passes"]["probe"].items())
    print(f"Passes over every context: capture rollouts, 1 student, 1 teacher; one_step probe {probe}")
    print(f"Recommended: {layout['command']}")
    for option, reason in layout["options"].items():
        print(f"  {option}: {reason}")
    print(f"  analysis: {layout['analysis']}")
    print(f"Extrapolated from {summary['calibration']['measured_on']}; what a CPU took says nothing about a GPU.")


def show_calibration(summary: Summary) -> None:
    """Print what this machine was measured to take, and where the record is."""
    table = _table(summary["made_with"]["device_name"], "measured", "")
    for name, value in summary["measured"].items():
        table.add_row(name.replace("_", " "), f"{value:,.1f}")
    _console().print(table)
    print(f"Recorded in {summary['file']}")


def _show_needs(summary: Summary) -> None:
    had = f"{summary['prompts']:,} prompts, {summary['positions']:,} positions"
    headings = "claim", "detectable", "effect", "prompts", "positions", "time"
    table = _table(f"{summary['run']} ({had}): what an effect needs for {summary['power']:.0%} power", *headings)
    alone = len({claim["probe_id"] for claim in summary["claims"]}) == 1
    for claim in summary["claims"]:
        name = claim["claim"] if alone else f"{claim['probe_id']}: {claim['claim']}"
        limits = [limit for limit in claim["detectable"].values() if limit is not None]
        unit = " nats" if claim["unit"] == "nats" else ""
        table.add_row(
            name,
            f"{max(limits):.3g}{unit}" if limits else "-",
            f"{claim['effect']:.3g}{unit}",
            "no number" if claim["prompts"] is None else f"{claim['prompts']:,}",
            "-" if claim["positions"] is None else f"{claim['positions']:,}",
            "unknown" if claim["seconds"] is None else _duration(sum(claim["seconds"].values())),
        )
    _console().print(table)
    print(
        "detectable: the smallest effect that the run tells from 0, and from the nearest placebo by as much.\n"
        "prompts: of the bank; no number helps against a placebo that shows as much, or that was drawn too seldom."
    )
    for claim in summary["claims"]:
        if claim["update_contexts"] is not None:
            print(
                f"{claim['claim']}: with {claim['update_contexts']:,} update contexts and --norm-batches "
                f"{claim['norm_batches']:,}, which grow alike."
            )
    if summary["timed_by"]:
        print(f"Time: {summary['timed_by']}.")


_TIMED = {"probe": "one_step probe", "training": "a training run"}  # what plan calls otherwise than people do


def _amounts(summary: Summary) -> list[tuple[str, str]]:
    stored, memory, time = (summary[part] for part in ("storage_bytes", "memory_bytes", "time_seconds"))
    processes = summary["layout"]["processes"]
    return [
        ("disk: positions, with top-K lists", _size(stored["positions"])),
        ("disk: positions, without", _size(stored["positions_without_topk"])),
        ("disk: the teacher's states, which probes share", _size(stored["probe_scratch"])),
        *((f"time: {_TIMED.get(name, name)}, {processes} processes", _duration(taken)) for name, taken in time.items()),
        ("memory a device: capture", _size(memory["capture"])),
        *((f"  {name.replace('_', ' ')}", _size(memory[name])) for name in ("weights", "whole_heads", "tile", "rest")),
        ("memory a device: probe", _size(memory["probe"])),
    ]


def _size(amount: float) -> str:
    """Bytes for people, in decimal units."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount / 1e3:.3g} kB"


def _duration(seconds: float) -> str:
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _console(width: int | None = None) -> Console:
    """Names of runs, arms and selectors may hold brackets, which are no markup."""
    return Console(width=width, markup=False)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left")
    return table
