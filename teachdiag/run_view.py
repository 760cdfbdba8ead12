"""A run from Python: its tables as pandas frames, its verdict, figures and tokens, each read when it is asked for.

    import teachdiag

    run = teachdiag.open_run("runs/demo")
    run.verdict  # what was found, and what to do next
    run.bank().nlargest(20, "gain")[["token", "forward_kl", "gain"]]
    run.figure("efficiency")

Nothing is computed anew and nothing is written; torch is not needed.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from teachdiag.analysis.text.text_tables import altered, model_name
from teachdiag.artefacts import GAINS, POSITIONS, PROBE_VERSUS_TRAINING, TABLES, TRAINING
from teachdiag.errors import ArtefactError, RunError, SettingsError
from teachdiag.runs import Stage, bank_prompts, probe_names, teacher_prompt
from teachdiag.settings import KINDS, CaptureSettings
from teachdiag.signals import positions_of
from teachdiag.tables import Table, shard_files

if TYPE_CHECKING:
    from teachdiag.figures.style import Picture

_TABLES = {table.name: table for table in TABLES}
_POSITION = ["context_id", "position"]  # what names a row of the bank
_BEFORE, _AFTER = (
    ("capture", "grade", "import"),
    ("analyze", "analyze-released", "train", "evaluate"),
)  # probes between them
_FRAME = "48rem"  # height of a page of tokens in a notebook
_WIDTH = 100  # of what is printed, in characters


def open_run(path: str | Path) -> "Run":
    """Open a run directory; one in which a stage is still at work, too.

    Args:
        path: the run directory, as `--run` of the command line takes it.

    Raises:
        RunError: it is no run directory, or the note of a stage in it is damaged.
    """
    run = Run(Path(path).expanduser())
    if not run.path.is_dir():
        raise RunError(f"there is no run directory {run.path}: run `teachdiag capture --run {run.path}` first")
    if not run.stages:
        raise RunError(
            f"{run.path} is no run directory, since no stage has left its note there (as capture.json): give the "
            f"folder that --run named, or run `teachdiag capture --run {run.path}` first"
        )
    return run


@dataclass(frozen=True, repr=False)
class Verdict:
    """What `teachdiag analyze` found, and what to do next.

    Attributes:
        sentences: the headline.
        action: what to do next.
        command: what to type for it; '' for nothing.
        caveats: what changes how the headline is read, in one line; '' for nothing.
        details: every claim in a sentence, probe by probe, at K = 16.
    """

    sentences: tuple[str, ...]
    action: str
    command: str
    caveats: str
    details: tuple[str, ...]

    def __repr__(self) -> str:
        """Return it as it is read; `details` are left out."""
        lines = [*_wrapped(" ".join(self.sentences)), *_wrapped(f"Next: {self.action}.")]
        lines += [f"  {self.command}"] if self.command else []
        lines += _wrapped(f"Caveats: {self.caveats}") if self.caveats else []
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        parts = [" ".join(self.sentences), f"**{self.action}.**"]
        parts += [f"```\n{self.command}\n```"] if self.command else []
        return "\n\n".join(parts + ([f"Caveats: {self.caveats}"] if self.caveats else []))


@dataclass(frozen=True, repr=False)
class TokenPage:
    """Tokens of one context, each with what both models expected there, as a page that notebooks show.

    Attributes:
        title: of which context and run.
        html: the whole page, which needs no other file and no network.
    """

    title: str
    html: str

    def __repr__(self) -> str:
        return f"<{self.title}: a page for notebooks, {len(self.html) / 1e6:.1f} MB in .html>"

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, whose styles and names do not touch the notebook's."""
        frame = f'srcdoc="{escape(self.html)}" title="{escape(self.title)}" loading="lazy"'
        return f'<iframe {frame} style="width:100%;height:{_FRAME};border:0"></iframe>'


@dataclass(frozen=True, repr=False)
class Run:
    """One run directory. Every table of `docs/artefacts.md` is an attribute under its own name: a pandas frame.

    `run.positions`, `run.gains`, `run.estimates`: read when it is first asked for, and then kept, so that it is the
    same frame each time; a run that is opened again is read again. A table of several probes holds those that have
    ended. (The table `tokens` is `run.table("tokens")`: the attribute of that name shows a context.)

    Attributes:
        path: the run directory.
    """

    path: Path
    _kept: dict[str, pd.DataFrame] = field(default_factory=dict, compare=False)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_"):  # what Jupyter and copy look for
            raise AttributeError(name)
        if name not in _TABLES:
            raise AttributeError(f"a run has no table or attribute {name!r}; {self.path} has {', '.join(self.tables)}")
        return self.table(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables})

    def __repr__(self) -> str:
        lines = [f"teachdiag run {self.path}"]
        for name, text in self._about().items():
            lines += textwrap.wrap(text, _WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{name}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for name, text in self._about().items()
        )
        return f"<table><caption>teachdiag run <code>{escape(str(self.path))}</code></caption>{rows}</table>"

    @property
    def stages(self) -> dict[str, str]:
        """Status of every stage that has begun, 'complete' or 'running'; a probe is called `probes/<probe_id>`."""
        return {name: note["status"] for name, note in self._notes().items()}

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that stages which have ended wrote."""
        written = self._written()
        return tuple(table.name for table in TABLES if _places(table, written, self.path))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one table, as `docs/artefacts.md` explains it.

        Args:
            name: that of the table.
            columns: those to read, which spares memory where a run is large; by default all, and the frame is kept.

        Raises:
            ArtefactError: there is no such table or column, the run does not have it, or a file of it is damaged.
        """
        table = self._named(name)
        if columns is not None:
            return self._read(table, columns)
        if name not in self._kept:
            self._kept[name] = self._read(table)
        return self._kept[name]

    def explain(self, name: str) -> pd.DataFrame:
        """Return what the columns of a table are: column, unit ('1' is a pure number) and meaning, a row each.

        Raises:
            ArtefactError: there is no such table.
        """
        columns = self._schema(self._named(name)).columns
        return pd.DataFrame([(c.name, c.unit, c.meaning) for c in columns], columns=["column", "unit", "meaning"])

    def files(self, name: str) -> list[Path]:
        """Return the Parquet files of one table, shards in their order.

        Raises:
            ArtefactError: there is no such table, or the run does not have it.
        """
        table = self._named(name)
        places = _places(table, self._written(), self.path)
        if not places:
            raise ArtefactError(self._lacks(table))
        return [file for place in places for file in (shard_files(place) if place.is_dir() else [place])]

    def bank(self, probe_id: str = "", draw: int | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the bank with what one update did to it: a row a position, by context and position.

        The columns are those of `positions`, then those of `gains` that are not among them, and behind `token_id` its
        text, `token`. Positions that the probe did not rescore (`--bank-contexts`) are left out.

        Args:
            probe_id: of the update: a probe's name is its real step, <probe>.<update> a placebo. By default the run's
                first real step, by name.
            draw: which draw of a placebo; needed where there are several.
            columns: those to read; by default all. `context_id` and `position` come with them.

        Raises:
            ArtefactError: the run has no such update or column, or its gains are not of this bank.
            SettingsError: there are several draws, or not this one.
        """
        folder = self._gains_folder(probe_id)
        schema = self._schema(POSITIONS)
        wanted = None
        if columns is not None:
            known = dict.fromkeys([*(c.name for c in schema.columns), "token", *(c.name for c in GAINS.columns)])
            wanted = [*_POSITION, "token_id", "draw", *_known(columns, known, "the bank")]
        gains = _one_draw(GAINS.read(folder, wanted), folder.name, draw)
        positions = schema.read(self.path / POSITIONS.name, wanted, {"split": ["bank"]})
        bank = positions.merge(gains.drop(columns="prompt_id", errors="ignore"), on=_POSITION)
        if len(bank) != len(gains):
            raise ArtefactError(f"{folder} holds other positions than were captured: run that probe again")
        token = bank["token_id"].map(self.vocabulary.set_index("token_id")["text"])
        bank.insert(list(bank).index("token_id") + 1, "token", token)
        bank = bank.sort_values(_POSITION, ignore_index=True)
        return bank if columns is None else bank[list(dict.fromkeys([*_POSITION, *columns]))]

    @property
    def verdict(self) -> Verdict:
        """What the analysis found, and what to do next.

        Raises:
            RunError: the run has not been analysed, or by a version that did not say.
        """
        results = Stage(self.path, "analyze").record("results.headline")["results"]
        said = results["headline"]
        return Verdict(
            tuple(said["sentences"]), said["action"], said["command"], said["caveats"], tuple(results["verdict"])
        )

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that the run gives something to.

        Raises:
            RunError: the run has not been analysed, or a table is no longer what the analysis wrote.
        """
        from teachdiag.figures.publish import figure_names

        return tuple(figure_names(self.path))

    def figure(self, name: str) -> "Picture":
        """Draw one figure, in the house style, from the analysis' tables.

        Args:
            name: one of `figures`.

        Returns:
            A Matplotlib figure that pyplot does not hold, and that notebooks show by themselves over its `caption`. Its
            Axes are `run.figure(name).axes`, to be changed or drawn on; `savefig` writes it, without the caption.

        Raises:
            RunError: as `figures`.
            ArtefactError: nothing in the run gives that figure; the message says what there is.
        """
        from teachdiag.figures.publish import draw_figure

        return draw_figure(self.path, name)

    def tokens(self, context_id: int) -> TokenPage:
        """Return the tokens of one context of the bank: prompt, response, and both models' candidates at each token.

        Args:
            context_id: one of `run.bank()["context_id"]`.

        Raises:
            RunError: as `figures`.
            ArtefactError: the bank has no such context, or the run was captured without token texts.
        """
        from teachdiag.figures.report.tokens_page import tokens_page

        page = tokens_page(self.path, [int(context_id)])
        return TokenPage(f"context {context_id} of {self.path}", page)

    def _notes(self) -> dict[str, dict[str, Any]]:
        """The note of every stage that has begun, by its name."""
        names = (*_BEFORE, *(f"probes/{name}" for name in probe_names(self.path)), *_AFTER)
        notes = {name: Stage(self.path, name).read() for name in names}
        return {name: note for name, note in notes.items() if note is not None}

    def _written(self) -> list[str]:
        """What stages that have ended wrote, relative to the run, real steps before their placebos."""
        complete = (note for note in self._notes().values() if note["status"] == "complete")
        unnoted = (table.file(self.path) for table in (TRAINING, PROBE_VERSUS_TRAINING))  # the analysis of training
        return [entry for note in complete for entry in note.get("tables", {})] + [
            file.relative_to(self.path).as_posix() for file in unnoted if file.exists()
        ]

    def _named(self, name: str) -> Table:
        if name not in _TABLES:
            raise ArtefactError(f"no table is called {name!r}: {self.path} has {', '.join(self.tables)}")
        return _TABLES[name]

    def _schema(self, table: Table) -> Table:
        """The table's schema, with the columns of installed packages that the run has."""
        return positions_of(self.path / POSITIONS.name) if table is POSITIONS else table

    def _read(self, table: Table, columns: Sequence[str] | None = None) -> pd.DataFrame:
        places = _places(table, self._written(), self.path)
        if not places:
            raise ArtefactError(self._lacks(table))
        schema = self._schema(table)
        if columns is not None:
            _known(columns, [c.name for c in schema.columns], f"table {table.name}")
        parts = [schema.read_arrow(place, columns) for place in places]
        frame: pd.DataFrame = pa.concat_tables(parts).to_pandas()
        return frame if columns is None else frame[list(columns)]

    def _lacks(self, table: Table) -> str:
        unfinished = [name for name, status in self.stages.items() if status != "complete"]
        also = f" (unfinished: {', '.join(unfinished)})" if unfinished else ""
        there = ", ".join(self.tables) or "none yet"
        return (
            f"{self.path} has no {table.name}, which `teachdiag {table.written_by}` writes{also}; its tables: {there}"
        )

    def _gains_folder(self, probe_id: str) -> Path:
        """Return where the gains of an update lie; of the first real step if none is named."""
        folders = {place.name: place for place in _places(GAINS, self._written(), self.path)}
        if not folders:
            raise ArtefactError(self._lacks(GAINS))
        kinds = {name.removeprefix("probes/"): note["settings"].get("kind") for name, note in self._notes().items()}
        steps = [name for name in folders if (kind := str(kinds.get(name))) in KINDS and KINDS[kind].step]
        if not probe_id and not steps:
            raise ArtefactError(
                f"{self.path} has no real step whose gains could be meant: name one of {', '.join(folders)}"
            )
        if probe_id and probe_id not in folders:
            raise ArtefactError(f"{self.path} has no gains of {probe_id!r}: it has those of {', '.join(folders)}")
        return folders[probe_id or steps[0]]

    def _about(self) -> dict[str, str]:
        """What the run is, in a line each."""
        notes, status = self._notes(), self.stages
        about = _pair(notes["capture"]) if "capture" in notes else {}
        probes = {name.removeprefix("probes/"): status[name] for name in notes if name.startswith("probes/")}
        about["stages"] = _by_status({name: text for name, text in status.items() if not name.startswith("probes/")})
        about["probes"] = _by_status(probes) or f"none yet: `teachdiag probe --run {self.path}`"
        said = notes.get("analyze", {}).get("results", {}).get("headline")
        about["headline"] = " ".join(said["sentences"]) if said else f"none yet: `teachdiag analyze {self.path}`"
        about |= {"next": said["action"]} if said else {}
        return about | {"tables": ", ".join(self.tables) or "none yet"}


def _pair(capture: Mapping[str, Any]) -> dict[str, str]:
    """Say which models and prompts a capture is of, which may be at work still."""
    settings = CaptureSettings.defaults() | capture["settings"]
    student, teacher = (model_name(settings[s]) + altered(capture["inputs"].get(s, {})) for s in ("student", "teacher"))
    results = capture.get("results", {})
    about = {
        "student": student,
        "teacher": teacher,
        "prompts": bank_prompts(capture),
    }
    if results:
        about["teacher"] += f", with the {teacher_prompt(capture)} prompt"
        about["prompts"] += "".join(
            f", {results['prompts'][split]:,} for the {what} ({results['positions'][split]:,} positions)"
            for split, what in (("bank", "bank"), ("update", "update"))
            if split in results["prompts"]
        )
    return about


def _by_status(status: Mapping[str, str]) -> str:
    done = ", ".join(name for name, text in status.items() if text == "complete")
    rest = ", ".join(name for name, text in status.items() if text != "complete")
    return "; ".join(filter(None, (done, f"unfinished: {rest}" if rest else "")))


def _places(table: Table, written: Sequence[str], run: Path) -> list[Path]:
    """Return the files and folders of a table among what finished stages wrote."""
    folder, _, by_probe = table.folder.partition("<")
    if by_probe:
        return [run / entry for entry in written if entry.startswith(folder)]
    return [run / entry for entry in (folder.rstrip("/"), f"{folder}{table.name}.parquet") if entry in written]


def _known(names: Sequence[str], known: Iterable[str], what: str) -> Sequence[str]:
    strangers = [name for name in names if name not in known]
    if strangers:
        raise ArtefactError(f"{what} has no column {', '.join(strangers)}: choose from {', '.join(known)}")
    return names


def _one_draw(gains: pd.DataFrame, probe_id: str, draw: int | None) -> pd.DataFrame:
    draws = sorted(gains["draw"].unique())
    listed = ", ".join(map(str, draws))
    if draw is None and len(draws) > 1:
        raise SettingsError(f"{probe_id} was drawn several times: choose one, as draw={draws[0]} (it has {listed})")
    if draw is not None and draw not in draws:
        raise SettingsError(f"{probe_id} has no draw {draw}: it has {listed}")
    return gains if draw is None else gains[gains["draw"] == draw]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
