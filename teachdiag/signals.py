"""Per-token signals: one number of every position, known before any update; each declared here, and nowhere else.

Selectors, normalised scores, compared predictors, profiles, the names in texts and figures, and their colours are all
drawn from these declarations.

An installed package adds a signal by an entry point of its name in the group `teachdiag.signals`: a formula of stored
columns, or a statistic of its own, which capture stores in the table `positions`:

    margin = Signal(
        name="margin",
        column=Column("margin", pa.float32(), "nats", "log-probability of the teacher's first choice less its second"),
        measure="my_package.tensors:margin",
    )

The function `measure` is given the float32 log-probabilities (nats) of N positions over V ids, those of the student,
shape (N, V), and of the teacher, (N, V), and the realised token ids, (N,), int64. It returns N finite numbers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow.parquet as pq

from teachdiag.artefacts import POSITIONS
from teachdiag.artefacts.columns import DOUBLE, REAL
from teachdiag.errors import ArtefactError, SettingsError
from teachdiag.formulas import PER_SUPPORT, Score, column, complement, normed, product, soft_or
from teachdiag.registry import Registry
from teachdiag.settings import SUPPORT_SIZES
from teachdiag.tables import Column, Table, shard_files

_RAISED = {"^L": "\N{MODIFIER LETTER CAPITAL L}", "^I": "\N{MODIFIER LETTER CAPITAL I}", "^2": "\N{SUPERSCRIPT TWO}"}

Role = Literal["compared", "validity", "deciles"]
ROLES: tuple[Role, ...] = get_args(Role)
_OF_COLUMN = column("")  # stands for the score of a signal that is its own column


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One number of every position: how it is made, and what tables, texts and figures call it.

    Attributes:
        name: what tables call it.
        score: how it is made of stored columns.
        unit: of its values; '1' is a pure number.
        label: what texts call it, as 'raw KL'; its name where nothing is said.
        symbol: what figures call it; the label where nothing is said.
        words: what it is called in full, as 'student entropy'.
        colour: of its lines and points in figures.
        scaled: how it is made within [0, 1] for regressions, where its values are not yet; quantiles are the bank's.
        signed: whether its values lie to both sides of 0.
        selector: name of the selector that keeps its highest values, or ''.
        source: where it is from.
        column: what an installed package adds to the table `positions`; `score` is then the column, unless given.
        measure: 'module:function' that computes the column.
        roles: analyses that the signal of an installed package joins: 'compared', correlated with every outcome;
            'validity', cross-validated alone and on top of raw KL; 'deciles', profiled. The lists below say who of the
            built-in ones is where.
    """

    name: str
    score: Score = _OF_COLUMN
    unit: str = "1"
    label: str = ""
    symbol: str = ""
    words: str = ""
    colour: str = "0.4"
    scaled: Score | None = None
    signed: bool = False
    selector: str = ""
    source: str = ""
    column: Column | None = None
    measure: str = ""
    roles: tuple[Role, ...] = ROLES

    def __post_init__(self) -> None:
        """Fill in what other fields say."""
        label = self.label or self.name
        filled: dict[str, Any] = {
            "label": label,
            "symbol": self.symbol or raised(label),
            "words": self.words or self.name.replace("_", " "),
        }
        if self.column and self.score is _OF_COLUMN:
            filled |= {"score": column(self.name), "scaled": normed(self.name), "unit": self.column.unit}
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    @property
    def has_k(self) -> bool:
        """Whether it is of one support size K."""
        return self.score.has_k

    @property
    def normalised(self) -> Score:
        """How it is made within [0, 1]."""
        return self.scaled or self.score

    @property
    def title(self) -> str:
        """Symbol and words, for a panel or a line of a figure."""
        return self._with_words(self.symbol)

    @property
    def heading(self) -> str:
        """Label and words, for a list to choose from."""
        return self._with_words(self.label)

    def _with_words(self, short: str) -> str:
        if short == self.name:
            return self.words
        return short if self.words in short else f"{short} {self.words}"


def raised(label: str) -> str:
    """Return a label as figures write it, with letters that are raised; text stays text so, unlike a formula."""
    for plain, letter in _RAISED.items():
        label = label.replace(plain, letter)
    return label


def lowered(symbol: str) -> str:
    """Return what figures write as texts do."""
    for plain, letter in _RAISED.items():
        symbol = symbol.replace(letter, plain)
    return symbol


def _measured(name: str, unit: str, **facts: Any) -> Signal:  # noqa: ANN401
    """A signal that is a stored column."""
    return Signal(name=name, score=column(name), scaled=normed(name), unit=unit, **facts)


TA_OPD, OURS = "TA-OPD, arXiv 2605.26844", "this project"
_H, _D, _C = normed("student_entropy"), normed("disagreement"), normed("compatibility")
_LEARNABLE = product(_D, _C)

_DECLARED = (
    _measured(
        "student_entropy",
        "nats",
        label="H",
        words="student entropy",
        colour="#029e73",
        selector="entropy",
        source="80/20 rule, arXiv 2506.01939",
    ),
    _measured("teacher_entropy", "nats"),
    Signal(name="position", score=column("pos_norm")),
    _measured(
        "forward_kl",
        "nats",
        label="raw KL",
        words="raw KL",
        colour="#262626",
        selector="forward_kl",
        source=f"raw KL; {TA_OPD}",
    ),
    _measured("disagreement", "nats", label="D", selector="disagreement", source=f"{TA_OPD}, Eq. 3"),
    _measured("compatibility", "1", label="C", selector="compatibility", source=f"{TA_OPD}, Eq. 4"),
    _measured("bhattacharyya", "1", symbol="Bhattacharyya"),
    _measured("overlap", "1"),
    _measured("jaccard", "1", symbol="Jaccard"),
    _measured("teacher_top1_in_support", "1", symbol="teacher's first"),
    _measured("compatibility_bound", "1", symbol="C, lower bound"),
    Signal(name="entropy_x_disagreement", score=product(_H, _D), label="H x D"),
    Signal(
        name="learnable",
        score=_LEARNABLE,
        label="D^L",
        colour="#0173b2",
        selector="learnable",
        source=TA_OPD,
    ),
    Signal(
        name="incompatible",
        score=product(_D, complement(_C)),
        label="D^I",
        colour="#de8f05",
        selector="incompatible",
        source=TA_OPD,
    ),
    Signal(
        name="tip",
        score=soft_or(_H, _D),
        symbol="TIP",
        words="TIP",
        selector="tip",
        source="TIP, arXiv 2604.14084 (there with min-max normalisation)",
    ),
    Signal(
        name="learnable_entropy",
        score=soft_or(_H, _LEARNABLE),
        symbol="TA-OPD + entropy",
        words="TA-OPD + entropy",
        selector="learnable_entropy",
        source=f"{TA_OPD}, Eq. 16",
    ),
    _measured(
        "logit_alignment",
        "nats",
        symbol="A",
        colour="#56b4e9",
        signed=True,
        selector="logit_alignment",
        source=OURS,
    ),
    Signal(
        name="hidden x logit_alignment",
        score=product(column("hidden_norm_sq"), column("logit_alignment")),
        unit="nats",
        label="hidden^2 x logit_alignment",
        symbol=raised("|h|^2 A"),
        words=raised("|h|^2 A"),
        signed=True,
        selector="hidden_x_logit_alignment",
        source=OURS,
    ),
)
SIGNALS: Mapping[str, Signal] = {signal.name: signal for signal in _DECLARED}

# Who is analysed where, in the order in which tables have them; where a table goes by K, those without K come first.
BASE = "forward_kl"  # every other predictor is compared with it
NORMALISED = (
    *("student_entropy", "teacher_entropy", "position", "disagreement", "compatibility"),
    *("entropy_x_disagreement", "learnable", "incompatible", "tip", "learnable_entropy"),
)
SATURATION = tuple(name for name in NORMALISED if name not in ("position", "entropy_x_disagreement"))
COMPARED = (
    *("forward_kl", "logit_alignment", "hidden x logit_alignment", "disagreement", "compatibility"),
    *("learnable", "incompatible"),
)
VALIDITY: Mapping[str, tuple[str, ...]] = {  # sets of signals, each alone and on top of raw KL
    "logit_alignment": ("logit_alignment",),
    "hidden x logit_alignment": ("hidden x logit_alignment",),
    "compatibility": ("compatibility",),
    "decomposition": ("learnable", "incompatible"),
}
JUDGED = ("compatibility", "decomposition", "logit_alignment")  # sets that the verdict judges
DECILES = ("forward_kl", "compatibility", "learnable", "incompatible", "logit_alignment")
PLACEBO_RANKS = ("forward_kl", "compatibility", "learnable", "incompatible", "logit_alignment")
BUCKETS = ("compatibility", "learnable", "incompatible", "disagreement", "tip", "learnable_entropy")
SUPPORT = (  # C and its proxies
    *("compatibility", "bhattacharyya", "overlap", "jaccard", "teacher_top1_in_support"),
    "compatibility_bound",
)
SHOWN = ("learnable", "incompatible", "compatibility", "forward_kl", "student_entropy", "logit_alignment")  # of tokens
COMPOSITION = ("student_entropy", "disagreement", "compatibility", "learnable", "incompatible")


def _check(label: str, loaded: object) -> Signal:
    """Return an installed signal, or say what is wrong with it."""
    if not isinstance(loaded, Signal):
        raise SettingsError(f"{label} is of type {type(loaded).__name__}: it must be a teachdiag.signals.Signal")
    stored, readable = loaded.column, {c.name for c in POSITIONS.columns} | PER_SUPPORT
    if not isinstance(loaded.score, Score) or not isinstance(stored, Column | None):
        raise SettingsError(f"{label} has no teachdiag.formulas.Score as its score, or no teachdiag.tables.Column")
    unknown = set(loaded.score.columns) - readable - {loaded.name if stored else ""}
    faults = {
        f"is called {loaded.name!r}: its name must be that of its entry point": f"signal {loaded.name}" != label,
        "has a name that is no identifier": not loaded.name.isidentifier(),
        "has the name of a column of the table positions": loaded.name in readable,
        f"has roles {loaded.roles}: they must be among {', '.join(ROLES)}": not set(loaded.roles) <= set(ROLES),
        f"reads {', '.join(sorted(unknown))}: these are no columns of the table positions": bool(unknown),
    }
    if stored:
        faults |= {
            f"has a column {stored.name!r}: it must have the signal's name": stored.name != loaded.name,
            f"has a column of {stored.type}: it must be float32 or float64": stored.type not in (REAL, DOUBLE),
            f"has a measure {loaded.measure!r}: it must be 'module:function'": ":" not in loaded.measure,
        }
    for sentence, holds in faults.items():
        if holds:
            raise SettingsError(f"{label} {sentence}")
    return loaded


_REGISTRY = Registry("teachdiag.signals", "signal", SIGNALS, _check)


def added_signals() -> dict[str, Signal]:
    """Return the signals that installed packages add, by name.

    Raises:
        InputError: one cannot be loaded, or is no signal.
    """
    return {name: _REGISTRY[name] for name in _REGISTRY if name not in SIGNALS}


def added_columns() -> dict[str, tuple[Column, str]]:
    """Return the columns of `positions` that installed packages add, each with the function that computes it."""
    return {
        s.name: (replace(s.column, optional=True, nullable=False), s.measure)
        for s in added_signals().values()
        if s.column
    }


def recorded_columns() -> dict[str, dict[str, str]]:
    """Return what a capture's note records of the columns that installed packages add, if there are any."""
    measures = {name: measure for name, (_, measure) in added_columns().items()}
    return {"signals": measures} if measures else {}


def positions_table() -> Table:
    """Return the schema of `positions` with the columns that installed packages add."""
    return replace(POSITIONS, columns=(*POSITIONS.columns, *(column for column, _ in added_columns().values())))


def positions_of(folder: Path, needed: Iterable[str] = ()) -> Table:
    """Return the schema of a run's `positions`, with those columns of installed packages that it holds.

    Args:
        folder: the table.
        needed: columns that will be read.

    Raises:
        ArtefactError: an added column that is needed is not there, or is not what the installed package declares.
    """
    added = added_columns()
    files = shard_files(folder)
    if not added or not files:
        return POSITIONS
    present = POSITIONS.present(folder, list(added))
    absent = [name for name in needed if name in added and name not in present]
    if absent:
        raise ArtefactError(
            f"{folder} lacks {', '.join(absent)}: it was captured without the package that measures this, or with a "
            "teacher that gives no whole distribution; leave it out, or capture again"
        )
    schema = pq.read_schema(files[0])
    for name in present:
        stored = {key.decode(): value.decode() for key, value in (schema.field(name).metadata or {}).items()}
        declared = added[name][0]
        if (stored.get("unit"), stored.get("meaning")) != (declared.unit, declared.meaning):
            raise ArtefactError(
                f"{folder} holds another {name} than the installed package measures ({stored.get('meaning')!r}, in "
                f"{stored.get('unit')}; now {declared.meaning!r}, in {declared.unit}): install the package that it was "
                "captured with, or capture again"
            )
    return replace(POSITIONS, columns=(*POSITIONS.columns, *(added[name][0] for name in present)))


def with_role(role: Role, names: Iterable[str], added: Iterable[Signal] = ()) -> list[Signal]:
    """Return the built-in signals of a list, and then the added ones that have the role."""
    return [*(SIGNALS[name] for name in names), *(signal for signal in added if role in signal.roles)]


def members_of(name: str) -> tuple[Signal, ...]:
    """Return the signals of one of the compared sets."""
    return tuple(SIGNALS[member] for member in VALIDITY[name])


def at_each_k(signals: Iterable[Signal]) -> list[tuple[Signal, int | None]]:
    """Return every signal with each K that it has: first those without, as (signal, None), then size by size."""
    listed = list(signals)
    alone: list[tuple[Signal, int | None]] = [(signal, None) for signal in listed if not signal.has_k]
    return alone + [(signal, k) for k in SUPPORT_SIZES for signal in listed if signal.has_k]


def on_top_of_base(name: str) -> str:
    """Return the name of the set that adds a signal to raw KL."""
    return f"{BASE} + {name}"


def versus_base(name: str) -> str:
    """Return the term under which a predictor's difference from raw KL alone is reported."""
    return f"{name} vs {BASE}"


def signal_named(name: str) -> Signal:
    """Return the signal of a name or of a selector's name; for anything else, one that has nothing but that name."""
    if name in SIGNALS:
        return SIGNALS[name]
    of_selector = [signal for signal in SIGNALS.values() if signal.selector == name]
    if of_selector or name in _REGISTRY:
        return of_selector[0] if of_selector else _REGISTRY[name]
    return Signal(name=name, words=name)


def set_label(name: str) -> str:
    """Return what texts call a predictor, or several: 'forward_kl + decomposition' is 'raw KL + {D^L, D^I}'."""
    return _together(name, lambda signal: signal.label, "{{{}}}")


def set_symbol(name: str) -> str:
    """Return what figures call a predictor, or several together."""
    return _together(name, lambda signal: signal.symbol, "{}")


def _together(name: str, text: Callable[[Signal], str], several: str) -> str:
    parts = []
    for part in name.split(" + "):
        texts = [text(signal_named(member)) for member in VALIDITY.get(part, (part,))]
        parts.append(texts[0] if len(texts) == 1 else several.format(", ".join(texts)))
    return " + ".join(parts)


BASE_LABEL = SIGNALS[BASE].label
