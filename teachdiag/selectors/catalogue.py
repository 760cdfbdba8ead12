"""Selectors: pure functions from a table of token statistics to a score a position; higher is kept first.

The page `docs/selectors.md` is made from nothing else (`python -m teachdiag.selectors`).
"""

from collections.abc import Callable, Container
from textwrap import fill

import numpy as np
import numpy.typing as npt

from teachdiag.errors import SettingsError
from teachdiag.formulas import PER_SUPPORT, Score, column, complement, within_q3
from teachdiag.markdown import markdown_table
from teachdiag.registry import Registry, attribute, guarded, load
from teachdiag.scores import Array
from teachdiag.selectors import published
from teachdiag.selectors.released import METHODS, RELEASED, released_mask
from teachdiag.selectors.selector import Selector
from teachdiag.selectors.tokens import FROM_PROBES, KEYS, MEASURED, READABLE, Tokens
from teachdiag.signals import OURS, SIGNALS, TA_OPD, added_columns, added_signals

_STUDENT_LISTS = ("student_topk_ids", "student_topk_logp", "teacher_logp_at_student_topk")
_TEACHER_LISTS = ("teacher_topk_ids", "teacher_topk_logp", "student_logp_at_teacher_topk")
_REALISED = ("token_id", "student_logp", "teacher_logp")


def _lists(tokens: Tokens) -> published.Lists:
    return published.Lists(
        student_ids=tokens.top_list("student_topk_ids"),
        teacher_ids=tokens.top_list("teacher_topk_ids"),
        student_logp=tokens.top_list("student_topk_logp"),
        teacher_logp=tokens.top_list("teacher_topk_logp"),
        teacher_logp_at_student=tokens.top_list("teacher_logp_at_student_topk"),
        student_logp_at_teacher=tokens.top_list("student_logp_at_teacher_topk"),
    )


def _realised(tokens: Tokens) -> published.Realised:
    return published.Realised(*(tokens.stored(name) for name in _REALISED))


_UNIFORM = Score(lambda tokens: tokens.uniform("selectors/random"), (), "random(seed, context_id, position)")
_PREFIX = Score(lambda tokens: -tokens.column("position"), ("position",), "-position")
_C, _LEARNABLE, _INCOMPATIBLE = (SIGNALS[name].normalised for name in ("compatibility", "learnable", "incompatible"))
_IER = Score(
    lambda tokens: published.information_ratio(_lists(tokens), _realised(tokens)),
    (*_STUDENT_LISTS, *_TEACHER_LISTS, *_REALISED),
    "Var_p[c] / max(E_p[(c - b)² L] - Var_p[c], 1e-8) on U and y; c = log p/q, L = 1/p - 1, b = E_p[cL] / E_p[L]",
)
_PGT = Score(
    lambda tokens: published.ratio_variance(_lists(tokens)),
    (*_STUDENT_LISTS, *_TEACHER_LISTS),
    "Var of log q/p under p renormalised on U",
)
_DIAL = Score(
    lambda tokens: published.log_mean_ratio(tokens.column("student_logp"), tokens.column("teacher_logp")),
    ("student_logp", "teacher_logp"),
    "abs(log q(y) - log p(y)) · L(p(y), q(y))^½; L is the logarithmic mean",
)
_SELECTKD = Score(
    lambda tokens: published.first_choice_weight(
        tokens.top_list("student_topk_ids"), tokens.top_list("teacher_topk_ids")
    ),
    ("student_topk_ids", "teacher_topk_ids"),
    "1 if the student's first choice is among the teacher's five, else 0.01",
)
_FIRE = Score(
    lambda tokens: published.confidence_weight(tokens.column("teacher_entropy"), tokens.column("student_entropy")),
    ("teacher_entropy", "student_entropy"),
    "(2 - H(q) / max H(q)) · (1 + H(p) / max H(p))",
)
_IW_OPD = Score(
    lambda tokens: published.early_weight(
        tokens.stored("context_id"),
        tokens.stored("position"),
        tokens.column("teacher_logp") - tokens.column("student_logp"),
    ),
    ("teacher_logp", "student_logp"),
    "1 + ½ (1 - Σ_{s<t} abs(r_s) / Σ_s abs(r_s)), r = log q(y) - log p(y), sums within the context",
)
_PW_OPSD = Score(
    lambda tokens: published.late_weight(tokens.stored("context_id"), tokens.stored("position")),
    ("position",),
    "¼ + ¾ σ((u - 0.3) / 0.1), u = (i - ½) / n for the i-th of the context's n positions",
)
_OPSA = Score(lambda tokens: -tokens.column("student_logp"), ("student_logp",), "-log p(y)")
_TROPD = Score(
    lambda tokens: published.trust(tokens.column("student_logp"), tokens.column("teacher_logp")),
    ("student_logp", "teacher_logp"),
    "min(1, q(y) / p(y))",
)
_AOPD = Score(
    lambda tokens: np.sign(tokens.column("teacher_logp") - tokens.column("student_logp")),
    ("student_logp", "teacher_logp"),
    "sign of log q(y) - log p(y)",
)
_IDA_OPD = Score(
    lambda tokens: published.influence_weight(
        tokens.stored("student_topk_logp"),
        *(tokens.column(name) for name in ("student_entropy", "student_logp", "teacher_logp")),
    ),
    ("student_topk_logp", "student_entropy", "student_logp", "teacher_logp"),
    "1 where (log q(y) - log p(y)) · D ≥ 0, else abs(q(y) - p(y)) / (q(y) + p(y)); "
    "D = Σ p² (log p + H(p)) - p(y) (log p(y) + H(p))",
    whole_lists=True,
)

_OF_SIGNALS = [Selector(s.selector, s.score, s.source) for s in SIGNALS.values() if s.selector]
_DECLARED = (
    Selector("random", _UNIFORM, "baseline"),
    Selector("prefix", _PREFIX, "first positions; arXiv 2605.27028"),
    *(selector for selector in _OF_SIGNALS if selector.source != OURS),
    Selector("q3", within_q3(_UNIFORM), "TIP, arXiv 2604.14084"),
    Selector("q3_high_c", within_q3(_C), TA_OPD),
    Selector("q3_low_c", within_q3(complement(_C)), TA_OPD),
    Selector("q3_learnable_high", within_q3(_LEARNABLE), TA_OPD),
    Selector("q3_learnable_low", within_q3(complement(_LEARNABLE)), TA_OPD),
    Selector("q3_incompatible_high", within_q3(_INCOMPATIBLE), TA_OPD),
    *(selector for selector in _OF_SIGNALS if selector.source == OURS),
    Selector("predicted", column("fix_inner"), f"{OURS}, after {TA_OPD}, Eq. 2"),
    Selector("oracle", column("isolated_gain"), OURS),
    Selector("ier", _IER, "IER, arXiv 2609.24432"),
    Selector("pgt", _PGT, "code of jta-opd"),
    Selector("dial", _DIAL, "DIAL, arXiv 2610.11659"),
    Selector("selectkd", _SELECTKD, "SelecTKD, arXiv 2510.24021"),
    Selector("fire", _FIRE, "FiRe-OPD, arXiv 2606.02684"),
    Selector("iw_opd", _IW_OPD, "IW-OPD, arXiv 2606.22600"),
    Selector("pw_opsd", _PW_OPSD, "PW-OPSD, arXiv 2605.21606"),
    Selector("opsa", _OPSA, "OPSA, arXiv 2608.31046; needs no teacher"),
    Selector("teacher_entropy", column("teacher_entropy"), "EOPD, arXiv 2603.07079 (there above 0.8 nats)"),
    Selector("tropd", _TROPD, "TrOPD, arXiv 2606.01249"),
    Selector("aopd", _AOPD, "AOPD, arXiv 2605.06387"),
    Selector("ida_opd", _IDA_OPD, "IDA-OPD, arXiv 2608.29846"),
)
_BUILT_IN = {selector.name: selector for selector in _DECLARED}


def lgr(tokens: Tokens) -> Array:
    """Return LGR's measure at the realised token, shape (N,): see `next_confidence`.

    It is asked for as `teachdiag.selectors.catalogue:lgr`, and compared nowhere unasked: it is unknown wherever the
    next position is not scored, which in a bank of drawn positions is nearly everywhere.
    """
    first_choice = tokens.stored("teacher_topk_logp")[:, 0].astype(np.float64)
    return published.next_confidence(tokens.stored("context_id"), tokens.stored("position"), first_choice)


lgr.columns = (*KEYS, "teacher_topk_logp")  # type: ignore[attr-defined]


def _selector(label: str, loaded: object) -> Selector:
    """Make a selector of a user's `Score`, or function of `Tokens`."""
    if isinstance(loaded, type) or not (isinstance(loaded, Score) or callable(loaded)):
        sort = f"the class {loaded.__name__}" if isinstance(loaded, type) else type(loaded).__name__
        raise SettingsError(f"{label} is {sort}, neither a function of Tokens nor a Score")
    with guarded(label, "cannot be loaded"):
        columns = getattr(loaded, "columns", MEASURED)
    readable = {*(column.name for column in READABLE), *PER_SUPPORT, *FROM_PROBES, *added_columns()}
    listed = isinstance(columns, list | tuple) and all(isinstance(column, str) for column in columns)
    if not listed or not readable.issuperset(columns):
        unknown = ", ".join(dict.fromkeys(c for c in columns if c not in readable)) if listed else repr(columns)
        raise SettingsError(
            f"{label} declares that it reads {unknown}: `columns` lists names of numeric columns of the table "
            "positions (docs/artefacts.md)"
        )
    name = label.removeprefix("selector ")
    score = loaded if isinstance(loaded, Score) else Score(loaded, (), name)
    return Selector(name, Score(_guarded(label, score.of), tuple(columns), score.formula), "user")


def _guarded(label: str, function: Callable[[Tokens], npt.ArrayLike]) -> Callable[[Tokens], Array]:
    def scores(tokens: Tokens) -> Array:
        with guarded(label, "failed"):
            values: Array = np.asarray(function(tokens))
            return values

    return scores


def _of_added_signals() -> dict[str, Selector]:
    return {name: Selector(name, signal.score, signal.source or "user") for name, signal in added_signals().items()}


SELECTORS = Registry(
    "teachdiag.selectors",
    "selector",
    _BUILT_IN,
    _selector,
    hint=", released:MASK, or your own as module:function",
    derived=_of_added_signals,
)


def selectors_of(columns: Container[str], k: int) -> dict[str, Selector]:
    """Return the built-in selectors, and those of installed packages whose columns at K are all there."""
    there = {name: all(column in columns for column in SELECTORS[name].columns(k)) for name in SELECTORS}
    return {name: SELECTORS[name] for name in SELECTORS if name in _BUILT_IN or there[name]}


def resolve_selector(spec: str) -> Selector:
    """Return a selector by its name here or that of an installed entry point, as `module:function` or `released:MASK`.

    What an entry point or `module:function` names is a `Score`, or a function of `Tokens` that returns one number a
    position. A function may say which columns it reads in an attribute `columns`; else it gets the whole table.

    Raises:
        SettingsError: nothing is found there; the message says what failed, or which names exist.
    """
    if spec.startswith(RELEASED):
        return released_mask(spec)
    module, _, function = spec.partition(":")
    if module and function and spec not in SELECTORS:
        return load(f"selector {spec}", lambda: attribute(spec), _selector)
    return SELECTORS[spec]


def selectors_page() -> str:
    """Return `docs/selectors.md`: every selector, made from the registry."""
    import pandas as pd

    rows = [(f"`{s.name}`", s.score.formula, s.source) for s in _BUILT_IN.values()]
    table = markdown_table(pd.DataFrame(rows, columns=["selector", "score", "source"]))
    masks = ", ".join(f"`{method}`" for method in METHODS)
    released = fill(_RELEASED.format(masks=masks), 120, subsequent_indent="  ", break_on_hyphens=False)
    return f"{_PREAMBLE.replace('{released}', released)}{table}\n"


_RELEASED = (
    "- **The released code** of TA-OPD selects otherwise. `released:MASK` reproduces its arithmetic wherever a "
    "selector is named, with rules of its own (`teachdiag.selectors.released`). Its masks: {masks}."
)
_PREAMBLE = """# Selectors

A selector scores every position from statistics measured before the update; the highest scores are kept.

```python
from pathlib import Path

from teachdiag.artefacts import POSITIONS
from teachdiag.selectors import Tokens, resolve_selector, select

selector = resolve_selector("learnable")
table = POSITIONS.read_arrow(Path("runs/demo/positions"), selector.columns(k=16))
chosen = select(Tokens.from_table(table, k=16), selector, budget=0.1)
chosen.kept  # one boolean a position
```

- **Normalisation** is chosen when selecting, over all positions given: `quantile`, clip((z - Q05) / (Q95 - Q05), 0, 1);
  `rank`, mid-rank / N; or `none`.
- **Budget**: exactly ⌈budget · N⌉ positions of the whole table, or with `scope="sequence"` exactly ⌈budget · R⌉ of
  every context with R positions. `minimum` tops up each context that has fewer, beyond the budget, and counts what it
  added.
- **Ties.** Positions that clipping made equal are ordered by the same formula under rank normalisation. What is still
  equal is decided by `ties`: `random` (by seed, context and position, so that the order of rows does not matter) or
  `earliest`. The share of places that this last rule decided is reported as `tied`.
- **Unknown** scores (NaN) rank last.
- **Your own**: `module:function`, a function of `Tokens` that returns one number a position; a `Score` made of the
  parts in `teachdiag.formulas`; or either under a name of the entry-point group `teachdiag.selectors`. Set
  `function.columns` to the names that it reads, and no others need loading. A `Signal` that a package adds
  (`teachdiag.signals`) is a selector of its name.
{released}

## A statistic of your own

An installed package adds a per-token statistic by an entry point of its name in the group `teachdiag.signals`:

```python
import pyarrow as pa
from teachdiag.signals import Signal
from teachdiag.tables import Column

MARGIN = Signal(
    name="margin",
    column=Column("margin", pa.float32(), "nats", "log-probability of the teacher's first choice less its second"),
    measure="my_package.tensors:margin",
)


def margin(student_logp, teacher_logp, tokens):  # float32 (N, V), float32 (N, V), int64 (N,) -> (N,)
    first, second = teacher_logp.topk(2).values.unbind(-1)
    return first - second
```

Capture stores it in `positions` and records that it did. It is a selector of its name, in probes and in training, and
is analysed like the built-in ones: deciles, cross-validated prediction alone and on top of raw KL, rank correlations,
the best-scored positions, and the report's token view. A `Signal` with a `score` made of `teachdiag.formulas` needs no
column. A run without the column is analysed without it; a column that another package wrote under the name is refused.

## The built-in selectors

p is the student, q the teacher, y the realised token, U the union of both top-K lists. `disagreement`, `compatibility`
and U are those of the chosen K. Q3 holds the positions whose student entropy is at most its median and whose forward KL
is at least its median. `predicted` reads `fix_inner`, the inner product of the gradient of a position's loss with that
of the held-out KL; `oracle` reads `isolated_gain`; the caller adds both columns.

Weights of other papers are used as scores: they order positions as the papers weigh them. Rock tokens (arXiv
2605.09253) are left out: they are found over a row of checkpoints, by comparing contexts with an encoder that the paper
leaves open. LGR (arXiv 2605.30833) rewards every candidate by the teacher's confidence after it, for which the teacher
must be asked after each; `teachdiag.selectors.catalogue:lgr` is that of the realised token, the largest q one position
later, and unknown where that position is not scored.

"""
