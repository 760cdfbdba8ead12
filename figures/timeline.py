"""The timeline of a monitored training: its figure, and the one page that holds it with its sentences."""

from html import escape
from pathlib import Path
from string import Template

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.artefacts import TIMELINE
from teachdiag.figures.captions import Caption, write_captions
from teachdiag.figures.style import INK, Picture, blank_figure, save, theme
from teachdiag.notes import read_note
from teachdiag.signals import signal_named
from teachdiag.tables import write_text

_ALL = "all"
_DASHES = ("-", "--", "-.", ":")  # of lines, so that greys and prints tell them apart
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { max-width: 50em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 system-ui, sans-serif; }
svg { max-width: 100%; height: auto; }
figcaption { font-size: smaller; }
table { border-collapse: collapse; }
td, th { padding: 0.1em 0.8em; text-align: right; border-bottom: 1px solid #ccc; }
</style>
</head>
<body>
<h1>$title</h1>
<ul>
$sentences
</ul>
<figure role="img" aria-label="$seen">
$svg
<figcaption>$caption</figcaption>
</figure>
<h2>Share of the first mask that is still kept</h2>
$table
</body>
</html>
""")


def publish_timeline(folder: Path) -> Path:
    """Draw the timeline into `figures/` of a monitored training, and write `timeline.html`; return that.

    Raises:
        ArtefactError: it has not been analysed.
    """
    rows = TIMELINE.read(TIMELINE.file(folder))
    said = read_note(folder / "analysis/timeline.json", {"sentences": list[str]}, "run `teachdiag timeline` again")
    with theme():
        picture = timeline_figure(rows)
        save(picture, folder / "figures", "timeline")
    write_captions(folder / "figures", {"timeline": Caption.of(picture)})
    svg = (folder / "figures/timeline.svg").read_text(encoding="utf-8")
    wide = rows[rows["selector"] != _ALL].pivot_table(index="step", columns="selector", values="overlap", sort=False)
    page = folder / "timeline.html"
    text = _PAGE.substitute(
        title=escape(f"{folder.name}: what is left to be learned"),
        sentences="\n".join(f"<li>{escape(sentence)}</li>" for sentence in said["sentences"]),
        seen=escape(picture.seen),
        svg=svg[svg.index("<svg") :],
        caption=escape(picture.caption),
        table=wide.reset_index().to_html(index=False, float_format="{:.2f}".format, border=0, escape=True),
    )
    write_text(text, page)
    return page


def timeline_figure(rows: pd.DataFrame) -> Picture:
    """Draw what is left of the KL at the positions of each first mask, and how much of these masks is still kept."""
    figure = blank_figure(3.9)
    left, overlap = figure.subplots(2, 1, sharex=True)
    names = [name for name in rows["selector"].unique() if name != _ALL]
    _draw(left, rows[rows["selector"] == _ALL], "left", "all positions", INK, "-", 2.0)
    for number, name in enumerate(names):
        signal, of_selector = signal_named(name), rows[rows["selector"] == name]
        dashes = _DASHES[number % len(_DASHES)]
        _draw(left, of_selector, "left", signal.title, signal.colour, dashes, 1.2)
        _draw(overlap, of_selector, "overlap", None, signal.colour, dashes, 1.2)
    budget = float(rows[rows["selector"] != _ALL]["budget"].iloc[0])
    overlap.axhline(budget, color="0.55", linewidth=0.8, linestyle=(0, (1, 2)), label="by chance")
    left.set_ylabel("share of KL left")
    overlap.set_ylabel("share of mask kept")
    overlap.set_xlabel("optimizer steps")
    left.set_ylim(bottom=0)
    overlap.set_ylim(0, 1.05)
    for ax in (left, overlap):
        ax.spines[["top", "right"]].set_visible(False)
    lines = [line for ax in (left, overlap) for line in ax.get_legend_handles_labels()[0]]
    figure.legend(handles=lines, loc="outside lower left", ncols=3)
    row = rows.iloc[0]
    figure.ask("How is the signal used up, and do masks still mean what they meant?")
    figure.tell(
        f"Above: KL(teacher || student) at the positions that each selector kept at the first look ({budget:.0%} of "
        f"{row['n_positions']:,} positions of {row['n_prompts']} prompts), as a share of what it was. Below: the share "
        "of these positions that the same selector keeps at a later look. Bands: 95%, over prompts.",
        _seen(rows),
    )
    return figure


def _draw(ax: Axes, rows: pd.DataFrame, name: str, label: str | None, colour: str, dashes: str, width: float) -> None:
    values, low, high = (rows[column].astype(float) for column in (name, f"{name}_ci_low", f"{name}_ci_high"))
    ax.plot(rows["step"], values, dashes, color=colour, linewidth=width, label=label)
    ax.fill_between(rows["step"], low, high, color=colour, alpha=0.12, linewidth=0)


def _seen(rows: pd.DataFrame) -> str:
    last = rows[rows["step"] == rows["step"].max()].set_index("selector")
    kept = ", ".join(
        f"{signal_named(name).label} {row['overlap']:.0%}" for name, row in last.iterrows() if pd.notna(row["overlap"])
    )
    return f"After {rows['step'].max()} steps {last.loc[_ALL, 'left']:.0%} of the KL is left; masks keep {kept}."
