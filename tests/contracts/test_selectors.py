"""Selectors against numbers worked by hand and slow definitions; tables, users' own functions, and the page."""

import math
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import slow
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from stages import ROOT
from token_worlds import COLUMNS, RNG, STUDENT, TEACHER, TOKEN, TOKENS, measured

from teachdiag.artefacts import BOUNDS, POSITIONS
from teachdiag.errors import SettingsError
from teachdiag.formulas import Score, column, product, stored_name, within_q3
from teachdiag.scores import mid_places, mid_ranks, near_places, q3_mask, quantile_bins
from teachdiag.scores import soft_or as either_suffices
from teachdiag.selectors import Selection
from teachdiag.selectors.budget import select
from teachdiag.selectors.catalogue import SELECTORS, resolve_selector, selectors_page
from teachdiag.selectors.tokens import KEYS, Tokens


def test_mid_ranks_by_hand() -> None:
    # 1 is below four others; the two 3s have one below and share places 2 and 3; NaN is unknown, yet counted.
    ranks = mid_ranks(np.array([3.0, 1.0, 3.0, 7.0, np.nan]))
    np.testing.assert_array_equal(ranks, [2 / 5, 0.5 / 5, 2 / 5, 3.5 / 5, np.nan])
    assert quantile_bins(np.array([3.0, 1.0, 3.0, 7.0]), 2).tolist() == [1, 0, 1, 1]
    assert np.bincount(quantile_bins(RNG.normal(size=100), 5)).tolist() == [20] * 5


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=60), st.integers(2, 10))
def test_bins_are_cut_at_mid_ranks(whole_numbers: list[int], n: int) -> None:
    for values in (np.array(whole_numbers) / 4, np.where(np.array(whole_numbers) > 9, np.inf, whole_numbers)):
        expected = np.floor(n * (rankdata(values) - 0.5) / len(values))
        np.testing.assert_array_equal(quantile_bins(values, n), expected)


@pytest.mark.parametrize("kind", ["float32", "few numbers of both signs", "float64", "too large for float32", "NaN"])
def test_mid_places_of_many_values_are_their_ranks(kind: str) -> None:
    values = RNG.normal(size=1_100_000).astype(np.float32).astype(np.float64)
    if kind == "few numbers of both signs":
        zeros = RNG.choice([0.0, -0.0], len(values))
        values = np.where(np.abs(values) < 0.1, zeros, np.round(values).astype(np.float32))
    elif kind == "float64":
        values = values / 3
    elif kind == "too large for float32":
        values = values * 1e39
    elif kind == "NaN":
        values[7] = np.nan
        np.testing.assert_array_equal(np.delete(mid_places(values), 7), rankdata(np.delete(values, 7)) - 0.5)
        return
    np.testing.assert_array_equal(mid_places(values), rankdata(values) - 0.5)


@pytest.mark.parametrize("kind", ["normal", "with an outlier", "with an infinity", "saturated", "constant"])
def test_near_places_order_as_ranks_do(kind: str) -> None:
    """A correlation with other ranks moves by less than a millionth; crowded values have their ranks themselves."""
    values = RNG.normal(size=300_000)
    other = rankdata(values + RNG.normal(size=len(values)))
    values = {
        "normal": values,
        "with an outlier": np.append(values[1:], 1e6),
        "with an infinity": np.append(values[1:], np.inf),
        "saturated": np.clip(values, -1, 1),
        "constant": np.zeros_like(values),
    }[kind]
    places, expected = near_places(values), rankdata(values) - 0.5
    if kind == "normal":
        assert 0 < np.abs(places - expected).max() < 100
        assert np.corrcoef(places, other)[0, 1] == pytest.approx(np.corrcoef(expected, other)[0, 1], abs=1e-7)
    else:
        np.testing.assert_array_equal(places, expected)


def test_composed_scores_by_hand() -> None:
    # 0, 1/8 .. 1 of nine values: quantiles 0.05 and 0.95 interpolate to 0.05 and 0.95, so norm(z) = (z - .05) / .9.
    z = np.arange(9) / 8
    columns = {
        "context_id": np.zeros(9, int),
        "position": np.arange(9),
        "student_entropy": z,
        "disagreement_k8": z[::-1].copy(),
        "compatibility_k8": z,
    }
    tokens = Tokens(columns, k=8)
    n = np.clip((z - 0.05) / 0.9, 0, 1)
    expected = {
        "learnable": n[::-1] * n,
        "incompatible": n[::-1] * (1 - n),
        "tip": n + n[::-1] - n * n[::-1],
        "learnable_entropy": n + n[::-1] * n - n * n[::-1] * n,
        "entropy": z,
        "prefix": -np.arange(9.0),
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(SELECTORS[name].scores(tokens), scores, atol=1e-15, err_msg=name)
    ranks = (np.arange(9) + 0.5) / 9
    np.testing.assert_allclose(SELECTORS["learnable"].scores(tokens.under("rank")), ranks[::-1] * ranks, atol=1e-15)
    np.testing.assert_allclose(SELECTORS["learnable"].scores(tokens.under("none")), z[::-1] * z, atol=1e-15)


@given(st.floats(0, 1), st.floats(0, 1))
def test_soft_or_is_certain_where_either_is(a: float, b: float) -> None:
    x, one = np.array([a]), np.ones(1)
    assert either_suffices(x, one) == either_suffices(one, x) == 1
    assert either_suffices(x, np.array([b])) == pytest.approx(a + b - a * b, abs=1e-15)


def slow_union(i: int, k: int, with_token: bool) -> tuple[list[float], list[float]]:
    p, q = slow.softmax(STUDENT[i]), slow.softmax(TEACHER[i])
    ids = set(slow.top(p, k)) | set(slow.top(q, k)) | ({int(TOKEN[i])} if with_token else set())
    mass_p, mass_q = sum(p[v] for v in ids), sum(q[v] for v in ids)
    return [p[v] / mass_p for v in ids], [q[v] / mass_q for v in ids]


@pytest.mark.parametrize("k", [8, 16, 32])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_scores_on_the_lists_are_their_definitions(k: int, kind: type) -> None:
    tokens = Tokens({n: v.astype(kind) if v.dtype == np.float64 else v for n, v in COLUMNS.items()}, k=k)
    tolerance = 1e-9 if kind is np.float64 else 1e-3
    pgt, ier = [], []
    for i in range(len(TOKENS)):
        p, q = slow_union(i, k, with_token=False)
        r = [math.log(b / a) for a, b in zip(p, q, strict=True)]
        mean = sum(a * x for a, x in zip(p, r, strict=True))
        pgt.append(sum(a * (x - mean) ** 2 for a, x in zip(p, r, strict=True)))
        p, q = slow_union(i, k, with_token=True)
        c, noise = [math.log(a / b) for a, b in zip(p, q, strict=True)], [1 / a - 1 for a in p]
        mean = sum(a * x for a, x in zip(p, c, strict=True))
        signal = sum(a * (x - mean) ** 2 for a, x in zip(p, c, strict=True))
        b = sum(a * x * w for a, x, w in zip(p, c, noise, strict=True)) / sum(
            a * w for a, w in zip(p, noise, strict=True)
        )
        second = sum(a * (x - b) ** 2 * w for a, x, w in zip(p, c, noise, strict=True))
        ier.append(signal / max(second - signal, 1e-8))
    np.testing.assert_allclose(SELECTORS["pgt"].scores(tokens), pgt, rtol=tolerance)
    np.testing.assert_allclose(SELECTORS["ier"].scores(tokens), ier, rtol=tolerance)


def test_scores_of_the_realised_token_are_their_definitions() -> None:
    dial, selectkd, fire, early = [], [], [], []
    largest_p, largest_q = COLUMNS["student_entropy"].max(), COLUMNS["teacher_entropy"].max()
    for i, y in enumerate(TOKEN):
        p, q = slow.softmax(STUDENT[i]), slow.softmax(TEACHER[i])
        dial.append(abs(math.log(q[y] / p[y])) * math.sqrt((q[y] - p[y]) / math.log(q[y] / p[y])))
        selectkd.append(1.0 if slow.top(p, 1)[0] in slow.top(q, 5) else 0.01)
        fire.append((1 + 1 - slow.entropy(q) / largest_q) * (1 + slow.entropy(p) / largest_p))
        size = {
            COLUMNS["position"][j]: abs(COLUMNS["teacher_logp"][j] - COLUMNS["student_logp"][j])
            for j in range(len(TOKEN))
            if COLUMNS["context_id"][j] == COLUMNS["context_id"][i]
        }
        before = sum(r for t, r in size.items() if t < COLUMNS["position"][i])
        early.append(1 + 0.5 * (1 - before / sum(size.values())))
    for name, expected in {"dial": dial, "selectkd": selectkd, "fire": fire, "iw_opd": early}.items():
        np.testing.assert_allclose(SELECTORS[name].scores(TOKENS), expected, rtol=1e-9, err_msg=name)
    assert 0 < np.mean(np.array(selectkd) == 1) < 1


def test_scores_of_this_year_are_their_definitions() -> None:
    student_first, late, confident = [], [], []
    for i, y in enumerate(TOKEN):
        p = slow.softmax(STUDENT[i])
        student_first.append(-math.log(p[y]))
        mine = [j for j in range(len(TOKEN)) if COLUMNS["context_id"][j] == COLUMNS["context_id"][i]]
        u = (sum(COLUMNS["position"][j] < COLUMNS["position"][i] for j in mine) + 0.5) / len(mine)
        late.append(0.25 + 0.75 / (1 + math.exp(-(u - 0.3) / 0.1)))
        after = [j for j in mine if COLUMNS["position"][j] == COLUMNS["position"][i] + 1]
        confident.append(max(slow.softmax(TEACHER[after[0]])) if after else math.nan)
    expected = {"opsa": student_first, "pw_opsd": late}
    expected["teacher_entropy"] = [slow.entropy(slow.softmax(row)) for row in TEACHER]
    ratio = [slow.softmax(t)[y] / slow.softmax(s)[y] for s, t, y in zip(STUDENT, TEACHER, TOKEN, strict=True)]
    expected |= {"tropd": [min(1.0, r) for r in ratio], "aopd": [math.copysign(1, r - 1) for r in ratio]}
    for name, scores in expected.items():
        np.testing.assert_allclose(SELECTORS[name].scores(TOKENS), scores, rtol=1e-9, err_msg=name)
    lgr = resolve_selector("teachdiag.selectors.catalogue:lgr")
    np.testing.assert_allclose(lgr.scores(TOKENS), confident, rtol=1e-9)
    assert np.isnan(confident).sum() == 6  # the last position of each context
    assert {name for name in SELECTORS if SELECTORS[name].score.has_k and name in expected} == set()


def test_entropy_influence_is_what_a_step_of_the_logits_does() -> None:
    narrow = STUDENT * 3  # nearly all of p_v^2 is in the list of 32
    rng = np.random.default_rng(0)
    sampled = np.array([rng.choice(len(row), p=slow.softmax(row / 2)) for row in narrow])
    table = measured(narrow, TEACHER, sampled, rng)
    expected, clear = [], []
    for z, t, y in zip(narrow, TEACHER, sampled, strict=True):
        p, q = slow.softmax(z), slow.softmax(t)
        onward = math.log(q[y] / p[y]) * (np.eye(len(z))[y] - p)  # descent on -log(q/p) log p(y)
        rise = (slow.entropy(slow.softmax(z + 1e-5 * onward)) - slow.entropy(slow.softmax(z - 1e-5 * onward))) / 2e-5
        expected.append(abs(q[y] - p[y]) / (q[y] + p[y]) if rise < 0 else 1.0)
        clear.append(abs(rise) > 1e-6)
    scores = SELECTORS["ida_opd"].scores(Tokens(table))
    np.testing.assert_allclose(scores[clear], np.array(expected)[clear], rtol=1e-7)
    assert np.sum(clear) > 50
    assert 0.1 < np.mean(np.array(expected) == 1) < 0.9


def test_identical_models_teach_nothing() -> None:
    same = measured(STUDENT, STUDENT, TOKEN, RNG)
    for name in ("ier", "pgt", "dial"):
        np.testing.assert_allclose(SELECTORS[name].scores(Tokens(same)), 0, atol=1e-12, err_msg=name)
    assert set(SELECTORS["iw_opd"].scores(Tokens(same))) == {1.5}
    silent = same | {"student_entropy": np.zeros(60), "teacher_entropy": np.zeros(60)}
    assert set(SELECTORS["fire"].scores(Tokens(silent))) == {2.0}


def test_q3_comes_first_and_keeps_the_order_of_its_score() -> None:
    inside, _, _ = q3_mask(COLUMNS["student_entropy"], COLUMNS["forward_kl"])
    for name in SELECTORS:
        if name.startswith("q3"):
            scores = SELECTORS[name].scores(TOKENS)
            assert scores[inside].min() > scores[~inside].max()
            assert select(TOKENS, SELECTORS[name], inside.mean()).kept.tolist() == inside.tolist()
    scores, c = SELECTORS["q3_low_c"].scores(TOKENS), COLUMNS["compatibility_k16"]
    assert (np.diff(c[inside][np.argsort(scores[inside])]) <= 0).sum() >= inside.sum() - 3  # all but the clipped
    huge = column("a").of
    raw = within_q3(Score(lambda tokens: np.asarray(huge(tokens)) * 1e12, ("a",), "a"))
    tokens = Tokens(COLUMNS | {"a": np.arange(60) / 60})
    assert (np.diff(np.asarray(raw.of(tokens))[inside]) > 0).all()


def test_every_selector_declares_what_it_reads() -> None:
    for k in (8, 32):
        for selector in SELECTORS.values():
            names = selector.columns(k)
            tokens = Tokens({name: COLUMNS[name] for name in names}, k=k, seed=5)
            np.testing.assert_array_equal(selector.scores(tokens), selector.scores(Tokens(COLUMNS, k=k, seed=5)))
            stored = set(names) - {"fix_inner", "isolated_gain"}
            assert stored <= {c.name for c in POSITIONS.columns}
    assert SELECTORS["learnable"].columns(8) == ("context_id", "position", "disagreement_k8", "compatibility_k8")
    assert stored_name("forward_kl", 8) == "forward_kl"


def test_tokens_come_from_arrow_and_pandas() -> None:
    def stored(name: str) -> pa.Array | np.ndarray:
        values = COLUMNS[name]
        if values.ndim == 1:
            return values
        kind = pa.int32() if values.dtype.kind == "i" else pa.float64()
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), 32)

    table = pa.table({name: stored(name) for name in COLUMNS} | {"prompt_id": ["x"] * 60})
    table = pa.concat_tables([table.slice(0, 25), table.slice(25)]).filter(pa.array(np.arange(60) >= 10))
    for given_table in (table, table.to_pandas()):
        tokens = Tokens.from_table(given_table, k=8, seed=5)
        assert set(tokens.columns) == set(COLUMNS)
        for name, values in tokens.columns.items():
            np.testing.assert_array_equal(values, COLUMNS[name][10:])


def test_users_bring_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(tokens: Tokens) -> np.ndarray:
        return tokens.column("position")

    late.columns = ("position",)  # type: ignore[attr-defined]
    module = types.ModuleType("mine")
    vars(module).update(
        late=late, everything=lambda tokens: tokens.column("a"), part=product(column("position"), column("position"))
    )
    vars(module).update(number=3, short=lambda tokens: np.ones(2), endless=lambda tokens: np.full(len(tokens), np.inf))
    vars(module).update(words=lambda tokens: np.full(len(tokens), "x"))
    monkeypatch.setitem(sys.modules, "mine", module)
    assert resolve_selector("learnable") is SELECTORS["learnable"]
    selector = resolve_selector("mine:late")
    assert selector.columns(16) == ("context_id", "position")
    assert select(TOKENS, selector, 0.1).kept.tolist() == (COLUMNS["position"] == 9).tolist()
    assert set(resolve_selector("mine:everything").columns(16)) == {
        c.name for c in POSITIONS.columns if c.type != pa.string() and c not in BOUNDS and c.name != "weight"
    }
    assert resolve_selector("mine:part").score.formula == "position · position"
    entry = EntryPoints(
        [EntryPoint("later", "mine:late", SELECTORS.group), EntryPoint("lost", "nowhere:x", SELECTORS.group)]
    )
    monkeypatch.setattr("teachdiag.registry.installed", lambda group: entry.select(group=group))
    np.testing.assert_array_equal(resolve_selector("later").scores(TOKENS), COLUMNS["position"])
    for spec, message in (
        (
            "laerner",
            r"no selector 'laerner': did you mean .*learnable.*\? There are random, .*, lost, released:MASK, or your",
        ),
        (
            "lost",
            r"selector lost cannot be loaded: \w+: No module named 'nowhere'; its folder must be on PYTHONPATH",
        ),
        (
            "mine:absent",
            r"selector mine:absent cannot be loaded: AttributeError: module 'mine' has no attribute 'absent'$",
        ),
        ("mine:number", "selector mine:number is int, neither a function of Tokens nor a Score"),
    ):
        with pytest.raises(SettingsError, match=message):
            resolve_selector(spec)
    for spec, message in (
        ("mine:short", r"returned float64 of shape \(2,\), where one number for each of 60 positions is due"),
        ("mine:words", r"returned <U1 of shape \(60,\)"),
        ("mine:endless", r"selector mine:endless scored row 0 as inf: scores are finite, or NaN"),
        ("mine:everything", r"the tokens lack the column a, which the selector reads"),
    ):
        with pytest.raises(SettingsError, match=message):
            select(TOKENS, resolve_selector(spec), 0.1)


def test_the_page_is_made_from_the_registry() -> None:
    page = (ROOT / "docs/selectors.md").read_text()
    assert page == selectors_page(), "run `make docs`"
    assert all(page.count(f"\n| `{name}` | ") == 1 for name in SELECTORS)
    assert max(line.count(" | ") for line in page.splitlines()) == 2  # no formula breaks its row


def test_selectors_need_no_torch() -> None:
    code = "import sys, teachdiag.selectors.released; assert not {'torch', 'scipy', 'statsmodels'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _exits(tokens: Tokens) -> np.ndarray:
    raise SystemExit(0)


def _raises(tokens: Tokens) -> np.ndarray:
    raise ZeroDivisionError("no luck")


def _changes(tokens: Tokens) -> np.ndarray:
    tokens.stored("position")[:] = 0
    return tokens.column("position")


def _declaring(columns: object) -> Callable[[Tokens], np.ndarray]:
    def score(tokens: Tokens) -> np.ndarray:
        return tokens.column("position")

    score.columns = columns  # type: ignore[attr-defined]
    return score


_USERS = {  # what a user may bring -> the sentence that it gets, when it is loaded or when it is called
    "Chosen": (type("Chosen", (), {}), "is the class Chosen, neither a function of Tokens nor a Score"),
    "nothing": (None, "is NoneType, neither"),
    "unknown": (_declaring(("forward_kl", "no_such", "other")), "declares that it reads no_such, other: `columns`"),
    "text": (_declaring(["prompt_id"]), "declares that it reads prompt_id: `columns` lists names of numeric columns"),
    "word": (_declaring("position"), "declares that it reads 'position': "),
    "numbers": (_declaring([3]), r"declares that it reads \[3\]: "),
    "part": (Score(_exits, ("nowhere",), "mine"), "declares that it reads nowhere"),
    "exits": (_exits, "failed: SystemExit: 0"),
    "exits_within": (Score(_exits, (), "mine"), "failed: SystemExit: 0"),
    "raises": (_raises, "failed: ZeroDivisionError: no luck"),
    "changes": (_changes, "failed: ValueError: assignment destination is read-only"),
    "none": (lambda tokens: None, r"returned object of shape \(\)"),
    "scalar": (lambda tokens: 1.0, r"returned float64 of shape \(\), where one number for each of 60 positions"),
    "ragged": (lambda tokens: [[1.0], [1.0, 2.0]], "failed: ValueError: "),
    "wide": (lambda tokens: np.ones((len(tokens), 2)), r"returned float64 of shape \(60, 2\)"),
    "complex": (lambda tokens: np.ones(len(tokens)) * 1j, r"returned complex128 of shape \(60,\)"),
    "words": (lambda tokens: ["x"] * len(tokens), r"returned <U1 of shape"),
    "objects": (lambda tokens: [None] * len(tokens), r"returned object of shape"),
    "nan": (lambda tokens: np.full(len(tokens), np.nan), "scored none of 60 positions: every score is NaN"),
    "minus": (lambda tokens: np.full(len(tokens), -np.inf), "scored row 0 as -inf"),
    "takes_nothing": (lambda: 1, "failed: TypeError: "),
}


@pytest.mark.parametrize("name", _USERS)
@pytest.mark.parametrize("soft", [False, True])
def test_what_users_code_does_wrong_is_a_sentence_that_names_it(
    name: str, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("bad")
    setattr(module, name, _USERS[name][0])
    monkeypatch.setitem(sys.modules, "bad", module)
    columns = {k: v for k, v in COLUMNS.items() if k in {*KEYS, "forward_kl"}}
    before = {k: v.copy() for k, v in columns.items()}
    with pytest.raises(SettingsError, match=f"^selector bad:{name} {_USERS[name][1]}"):
        Selection(f"bad:{name}", budget=0.2, soft=soft).weigh(columns)
    for key, values in before.items():
        np.testing.assert_array_equal(columns[key], values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit()", "cannot be loaded: SystemExit: "),
        ("def f(tokens)\n    return 1", "cannot be loaded: SyntaxError: expected ':'"),
        ("raise RuntimeError('first\\nsecond')", "cannot be loaded: RuntimeError: first$"),
        (
            "import no_such_module",
            "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'; its folder",
        ),
        ("f = None\x00", "cannot be loaded: SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_loaded_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(SettingsError, match=f"^selector broken_module:f {message}"):
        resolve_selector("broken_module:f")
