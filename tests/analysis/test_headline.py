"""The headline, sentence by sentence, from planted tables; its commands through the real command line."""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.report.front_page import WIDTH, FrontPage, front_page
from teachdiag.analysis.report.headline import STEP, Headline, choose, headline, update_name
from teachdiag.analysis.step.claims import PRIMARY_CLAIMS
from teachdiag.artefacts import EFFICIENCY, PRIMARY
from teachdiag.cli import app
from teachdiag.settings import HEADLINE_BUDGETS, HEADLINE_SELECTORS

RUN = Path("runs/demo")
CAPTURE = {"student": "embedded", "teacher": "embedded", "teacher_prompt": "same", "max_new_tokens": 64}
HELPS, GAP, C, LI = (claim.finding for claim in PRIMARY_CLAIMS if claim.finding != "")
NUMBERS = {HELPS: (0.009, 0.007, 0.011), GAP: (0.04, 0.02, 0.07), C: (-0.3, -0.4, -0.2), LI: (-0.04, -0.06, -0.02)}
HOLDS = {HELPS: "holds", GAP: "holds", C: "reversed", LI: "reversed"}


def primary(statuses: dict[str, str], probe_id: str = "one_step", **values: Any) -> pd.DataFrame:
    """Rows of the primary claims; `values` are of the first."""
    empty = dict.fromkeys(column.name for column in PRIMARY.columns if column.nullable)
    rows = []
    for claim in PRIMARY_CLAIMS:
        estimate, low, high = NUMBERS[claim.finding]
        row = {"probe_id": probe_id, "claim": claim.finding, "status": statuses[claim.finding], "unit": claim.unit}
        row |= {"estimate": estimate, "ci_low": low, "ci_high": high, "n_prompts": 64, "noise_floor": 0.0}
        row |= {"nearest_placebo": "theta0", "placebo_estimate": 0.001, "placebo_draws": 2, "sentence": "In full."}
        rows.append(empty | row | (values if claim.finding == HELPS else {}))
    return PRIMARY.build_rows(rows).to_pandas()


def efficiency(
    shares: dict[str, float], reach: float = 0.01, gain: tuple[float, float, float] = (0.1, 0.08, 0.12)
) -> Any:
    """Rows of what selectors keep at every headline budget; where the whole batch's gain is not above 0, it alone."""
    common = {"probe_id": "efficiency", "outcome": "gain", "unit": "1", "method": "planted", "n_contexts": 64}
    common |= {"n_prompts": 64, "n_blocks": 8, "norm_error": None, "real_share": None, "real_low": None}
    common |= {"real_high": None}
    common |= {"real_first_order": None}

    def row(selector: str, budget: float, statistic: str, estimate: float, low: float, high: float) -> dict[str, Any]:
        key = {"selector": selector, "budget": budget, "match": "rate" if statistic == "gain" else "norm"}
        number = {"estimate": estimate, "ci_low": low, "ci_high": high, "draw_error": (high - low) / 3.92}
        return common | key | number | {"statistic": statistic}

    rows = [row("all", 1.0, "gain", *gain)]
    for selector, share in shares.items() if gain[1] > 0 else ():
        for budget in HEADLINE_BUDGETS:
            rows.append(row(selector, budget, "share", share, share - reach, share + reach))
            if selector == "learnable":
                less = share - shares["forward_kl"]
                rows.append(row(selector, budget, "share_vs_base", less, less - reach, less + reach))
    return EFFICIENCY.build_rows(rows).to_pandas()


NOTHING = efficiency({}).iloc[:0]
NO_STEP = primary(HOLDS).iloc[:0]
KEPT = {"forward_kl": 0.95, "learnable": 0.84, "entropy": 0.8, "random": 0.41, "oracle": 1.2}


def said(first: pd.DataFrame, second: pd.DataFrame, update: str = STEP, **capture: Any) -> Headline:
    """The headline of planted tables."""
    names = dict.fromkeys(first["probe_id"], update)
    return headline(first, second, RUN, CAPTURE | capture, names)


def test_a_known_efficiency_and_a_known_effect() -> None:
    found = said(primary(HOLDS), efficiency(KEPT))
    assert found.sentences == (
        "At 10% of the tokens raw KL keeps 0.95 [0.94, 0.96] of the whole batch's gain at equal step length, TA-OPD's "
        "learnable score 0.84 [0.83, 0.85], entropy 0.80 [0.79, 0.81], random tokens 0.41 [0.40, 0.42].",
        "The claim that teachability beats raw KL is not supported on this pair (difference -0.11 [-0.12, -0.10]).",
        "One step took 0.009 [0.007, 0.011] nats off the bank's mean KL, beyond every placebo.",
        "Gain rises more with learnable than with incompatible disagreement (0.04 [0.02, 0.07] nats); C predicts gain "
        "worse than raw KL alone (rank correlation -0.3 [-0.4, -0.2]); {D^L, D^I} predicts gain worse than raw KL "
        "alone (rank correlation -0.04 [-0.06, -0.02]).",
        "One step says what one step does; `teachdiag train --sweep RECIPE` says whether training agrees.",
    )
    assert found.action == "Train on 1% of the tokens, chosen by forward_kl: they keep 0.95 [0.94, 0.96] of the gain"
    assert found.command == "teachdiag train --run runs/demo --selector forward_kl --budget 0.01"


@pytest.mark.parametrize(
    ("learnable", "verdict"),
    [
        (0.99, "is supported on this pair (difference 0.04 [0.03, 0.05])"),
        (0.955, "can be neither supported nor refuted on this pair (difference 0.01 [-0.00, 0.02])"),
        (0.9, "is not supported on this pair (difference -0.05 [-0.06, -0.04])"),
    ],
)
def test_the_papers_claim_is_judged_by_the_paired_difference(learnable: float, verdict: str) -> None:
    assert (
        f"The claim that teachability beats raw KL {verdict}."
        in said(NO_STEP, efficiency(KEPT | {"learnable": learnable})).sentences
    )


def test_gain_in_the_other_kl_is_named() -> None:
    first = said(NO_STEP, efficiency(KEPT).assign(outcome="gain_reverse")).sentences[0]
    assert "of the whole batch's gain in KL(student || teacher) at equal step length" in first
    nothing = efficiency({}, gain=(0.01, -0.02, 0.04)).assign(outcome="gain_reverse")
    assert "has no gain in KL(student || teacher) that is clearly told" in said(NO_STEP, nothing).sentences[0]


def test_no_effect_makes_one_claim_and_no_more() -> None:
    """Nothing but the gate itself is told where the step's gain is not."""
    nothing = primary(HOLDS | {HELPS: "not shown"}, estimate=1e-3, ci_low=-1e-3, ci_high=3e-3, prompts_needed=290)
    found = said(nothing, efficiency({}, gain=(0.01, -0.02, 0.04)))
    assert found.sentences[:2] == (
        "On held-out prompts a step on all tokens has no gain that is clearly told from 0 (0.01 [-0.02, 0.04] nats per "
        "unit of learning rate, to first order), so that no selector can keep a share of its gain.",
        "What one step gains cannot be told from 0 (0.001 [-0.001, 0.003] nats): nothing else is claimed of it. This "
        "run is too small to tell: about 290 bank prompts would be needed.",
    )
    assert found.action.startswith("This run is too small to tell which tokens to train on: about ")
    assert found.command == "teachdiag plan --from runs/demo"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("unclear", "cannot be told from that of the placebo theta0"),
        ("artefact", "is shown by the placebo theta0 too"),
    ],
)
def test_a_step_like_its_placebos_makes_no_claim(status: str, why: str) -> None:
    first, *others = said(primary(HOLDS | {HELPS: status}), NOTHING).sentences
    assert first == f"What one step gains {why} (0.009 [0.007, 0.011] nats): nothing else is claimed of it."
    assert len(others) == 1


@pytest.mark.parametrize("status", ["too long", "reversed"])
def test_a_step_that_cannot_be_judged_has_its_own_sentence(status: str) -> None:
    unjudged = dict.fromkeys(HOLDS, "not judged") | {HELPS: status}
    assert said(primary(unjudged), NOTHING).sentences[0] == "In full."


def test_a_harmful_step_without_a_ladder_is_said_to_harm() -> None:
    harmful = primary(HOLDS | {HELPS: "reversed"}, estimate=-0.01, ci_low=-0.02, ci_high=-0.005)
    expected = (
        "One step took the student further from the teacher (-0.01 [-0.02, -0.005] nats): nothing else is claimed"
    )
    assert said(harmful, NOTHING).sentences[0].startswith(expected)


def test_claims_that_are_open_or_a_placebos_are_told_apart() -> None:
    sentences = said(primary(HOLDS | {GAP: "artefact", C: "not shown", LI: "unclear"}), NOTHING).sentences
    assert sentences[1:4] == (
        "Not told on this run: whether C predicts gain better than raw KL alone.",
        "Not told from the placebo theta0: that {D^L, D^I} predicts gain worse than raw KL alone.",
        "A placebo shows it too: gain rises more with learnable than with incompatible disagreement (0.04 [0.02, 0.07] "
        "nats).",
    )


def test_without_efficiency_the_next_step_is_to_measure_it() -> None:
    found = said(primary(HOLDS), NOTHING)
    assert found.action == "Which tokens to train on was not measured: measure what each selector keeps"
    assert found.command == "teachdiag probe --run runs/demo --kind efficiency"


def test_a_checkpoint_alone_is_no_step() -> None:
    name = update_name(Record("c", "checkpoint", {}, {}))
    found = said(primary(HOLDS, "c"), NOTHING, name)
    assert found.sentences[0].startswith("Training took 0.009")
    assert not any("One step" in sentence for sentence in found.sentences)
    assert update_name(Record("m", "one_step", {"steps": 4}, {})) == "4 steps"


def test_a_run_without_either_says_so() -> None:
    assert said(NO_STEP, NOTHING).sentences == (
        "This run judges no step beside placebos, and not what selectors keep of a batch's gain.",
    )


def test_two_probes_are_told_apart() -> None:
    two = pd.concat([primary(HOLDS, "a"), primary(HOLDS, "b")], ignore_index=True)
    assert [s.split(":")[0] for s in said(two, NOTHING).sentences[:4]] == ["a", "a", "b", "b"]


def test_all_tokens_where_every_candidate_is_shown_to_keep_too_little() -> None:
    found = said(NO_STEP, efficiency(dict.fromkeys(KEPT, 0.7)))
    assert found.action == "Train on all tokens: no selector keeps 90% of the gain at up to 30% of them"
    assert found.command == "teachdiag train --run runs/demo --selector full"


def test_too_small_says_how_many_prompts() -> None:
    """Of the best candidate, 0.95 +- 0.3: an effect of 0.05 needs (0.3 + 0.8416 x 0.153)^2 / 0.05^2 times 64."""
    found = said(NO_STEP, efficiency(KEPT, reach=0.3))
    assert found.action == (
        "This run is too small to tell which tokens keep 90% of the gain: about 4709 bank prompts would "
        "be needed, of which it has 64"
    )
    assert found.command == "teachdiag plan --from runs/demo"


def test_random_tokens_are_enough_where_they_keep_as_much() -> None:
    choice = choose(efficiency(KEPT | {"random": 0.94}))
    assert (choice.selector, choice.budget) == ("random", 0.01)
    assert "no selector is needed" in choice.reason


def test_the_best_of_many_candidates_is_not_flattered() -> None:
    """One interval alone would clear 0.9; by Holm over sixteen it does not."""
    shares = dict.fromkeys(HEADLINE_SELECTORS, 0.89) | {"forward_kl": 0.95}
    rows = efficiency(shares, reach=0.04)
    rows = rows[(rows["selector"] != "forward_kl") | (rows["budget"] == 0.1)]
    assert rows[rows["selector"] == "forward_kl"]["ci_low"].min() > 0.9
    assert choose(rows).selector == ""


def test_a_gain_below_nothing_recommends_no_tokens() -> None:
    found = said(NO_STEP, efficiency({}, gain=(-0.1, -0.12, -0.08)))
    assert found.sentences[0].startswith("On held-out prompts a step on all tokens takes the student away")
    assert found.action == "Choose another loss: a step on all tokens takes the student away from the teacher"
    assert found.command == ""


@pytest.mark.parametrize(
    ("first", "second", "capture"),
    [
        (NO_STEP, efficiency(KEPT), {"student": "Qwen/Qwen3-1.7B", "teacher": "Qwen/Qwen3-4B", "dtype": "bfloat16"}),
        (NO_STEP, efficiency(KEPT), {"trust_remote_code": True, "max_new_tokens": 256, "data_file": "a b.jsonl"}),
        (NO_STEP, efficiency(dict.fromkeys(KEPT, 0.7)), {}),
        (NO_STEP, efficiency(KEPT, reach=0.3), {}),
        (primary(HOLDS), NOTHING, {}),
    ],
)
def test_commands_are_taken_by_the_command_line(first: pd.DataFrame, second: pd.DataFrame, capture: Any) -> None:
    program, name, *words = shlex.split(said(first, second, **capture).command)
    command = typer.main.get_command(app).get_command(None, name)  # type: ignore[attr-defined]
    assert program == "teachdiag"
    given = command.make_context(name, words).params
    for option, value in capture.items():
        assert given[option] == value


def test_what_train_cannot_do_has_no_command() -> None:
    for capture in ({"teacher_prompt": "privileged"}, {"contexts": "rollouts.parquet"}):
        found = said(NO_STEP, efficiency(KEPT), **capture)
        assert found.action.startswith("Train on 1%")
        assert found.command == ""


@pytest.fixture
def page() -> FrontPage:
    first, second = primary(HOLDS), efficiency(KEPT, reach=0.2)
    caveats = ["62% of responses were cut at 64 tokens (raise --max-new-tokens)", "2 draws of each placebo (--draws)"]
    return front_page(said(first, second), first, second, caveats, RUN)


def test_the_first_page_fits_a_terminal(page: FrontPage) -> None:
    lines = page.terminal()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(["raw KL", *["0.95 [.75,1.15]"] * 4]) in [" ".join(line.split()) for line in lines]
    assert "Reversed: " not in page.legend
    assert page.legend.startswith("Holds: the interval lies above 0")
    assert "artefact" not in page.legend  # explained where it appears alone


def test_summary_and_json_begin_with_the_same(page: FrontPage) -> None:
    text = "\n\n".join(page.markdown())
    assert text.startswith("At 10% of the tokens raw KL keeps")
    assert "| the step helps [nats] | 0.009 [0.007, 0.011] | theta0 0.001 | holds |" in text
    assert page.as_dict()["command"] in text
    assert page.as_dict()["caveats"].startswith("62% of responses were cut")
