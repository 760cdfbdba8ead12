"""Per-token signals: one number of every position, known before any update; each declared here, and nowhere else.

Selectors, normalised scores, compared predictors, profiles, the names in texts and figures, and their colours are all
drawn from these declarations. An installed package adds a signal by an entry point of the group `teachdiag.signals`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from teachdiag.formulas import Score, column, complement, normed, product, soft_or
from teachdiag.settings import SUPPORT_SIZES

Role = Literal["compared", "deciles", "validity"]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One number of every position: how it is made, and what tables, texts and figures call it.

    Attributes:
        name: what tables call it.
        score: how it is made of stored columns.
        unit: of its values; '1' is a pure number.
        label: what texts call it, as 'raw KL'; its name where nothing is said.
        symbol: what figures call it, in matplotlib's mathtext; the label where nothing is said.
        words: what it is called in full, as 'student entropy'.
        colour: of its lines and points in figures.
        scaled: how it is made within [0, 1] for regressions, where its values are not yet; quantiles are the bank's.
        selector: name of the selector that keeps its highest values, or ''.
        source: where it is from.
    """

    name: str
    score: Score
    unit: str = "1"
    label: str = ""
    symbol: str = ""
    words: str = ""
    colour: str = "0.5"
    scaled: Score | None = None
    selector: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        """Fill in what other fields say."""
        label = self.label or self.name
        filled = {
            "label": label,
            "symbol": self.symbol or (f"${label}$" if "^" in label else label),
            "words": self.words or self.name.replace("_", " "),
        }
        for name, text in filled.items():
            object.__setattr__(self, name, text)

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
        return self.symbol if self.words in self.symbol else f"{self.symbol} {self.words}"


def _measured(name: str, unit: str, **facts: str) -> Signal:
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
        colour="black",
        selector="forward_kl",
        source=f"raw KL; {TA_OPD}",
    ),
    _measured("disagreement", "nats", label="D", selector="disagreement", source=f"{TA_OPD}, Eq. 3"),
    _measured("compatibility", "1", label="C", selector="compatibility", source=f"{TA_OPD}, Eq. 4"),
    _measured("bhattacharyya", "1", symbol="Bhattacharyya"),
    _measured("overlap", "1"),
    _measured("jaccard", "1", symbol="Jaccard"),
    _measured("teacher_top1_in_support", "1", symbol="teacher's first\nchoice in support"),
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
        colour="#cc78bc",
        selector="tip",
        source="TIP, arXiv 2604.14084 (there with min-max normalisation)",
    ),
    Signal(
        name="learnable_entropy",
        score=soft_or(_H, _LEARNABLE),
        symbol="TA-OPD + entropy",
        words="TA-OPD + entropy",
        colour="#ca9161",
        selector="learnable_entropy",
        source=f"{TA_OPD}, Eq. 16",
    ),
    _measured("logit_alignment", "nats", symbol="A", colour="#56b4e9", selector="logit_alignment", source=OURS),
    Signal(
        name="hidden x logit_alignment",
        score=product(column("hidden_norm_sq"), column("logit_alignment")),
        unit="nats",
        label="hidden^2 x logit_alignment",
        symbol="$|h|^2$ A",
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
SUPPORT = (
    *("compatibility", "bhattacharyya", "overlap", "jaccard", "teacher_top1_in_support"),
    "compatibility_bound",
)
COMPOSITION = ("student_entropy", "disagreement", "compatibility", "learnable", "incompatible")


def members_of(name: str) -> tuple[Signal, ...]:
    """Return the signals of a set of predictors, or the one signal of that name."""
    return tuple(SIGNALS[member] for member in VALIDITY.get(name, (name,)))


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


def set_label(name: str) -> str:
    """Return what texts call a predictor, or several: 'forward_kl + decomposition' is 'raw KL + {D^L, D^I}'."""
    return _together(name, lambda signal: signal.label, "{{{}}}")


def set_symbol(name: str) -> str:
    """Return what figures call a predictor, or several together."""
    return _together(name, lambda signal: signal.symbol, "{}")


def _together(name: str, text: Callable[[Signal], str], several: str) -> str:
    parts = []
    for part in name.split(" + "):
        texts = [text(SIGNALS[member]) if member in SIGNALS else member for member in VALIDITY.get(part, (part,))]
        parts.append(texts[0] if len(texts) == 1 else several.format(", ".join(texts)))
    return " + ".join(parts)


BASE_LABEL = set_label(BASE)
