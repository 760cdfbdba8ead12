"""The worked example of the page of concepts: run on a run of the tiny pair, and held against what the stages wrote."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stages import ROOT

from tools.worked_example import PAGE, printed, snippets

PROSE = (ROOT / PAGE).read_text().partition("## A worked example")[2]


@pytest.mark.slow
def test_its_numbers_are_those_of_the_capture_and_of_the_analysis(analysed: Path) -> None:
    table, by_hand = snippets()
    assert "= 12, 33, 47\n" in table
    assert "position, K = 42, 16\n" in by_hand
    blocks = [table.replace("= 12, 33, 47\n", "= 0, 0, 9\n"), by_hand.replace("= 42, 16\n", "= 3, 16\n")]
    outputs, names = printed(blocks, analysed)
    bank = names["bank"]
    tokens = pd.read_parquet(analysed / "tokens")
    both = bank.merge(tokens, on=["context_id", "position"], validate="1:1")
    assert len(both) == len(bank) > 50
    np.testing.assert_allclose(both["D^L"], both["learnable"], atol=1e-6)
    np.testing.assert_allclose(both["D^I"], both["incompatible"], atol=1e-6)
    assert (both["Q3"] == both["in_q3"]).all()
    assert float(names["C"]) == pytest.approx(names["row"]["compatibility_k16"], rel=1e-4)
    assert float(names["D"]) == pytest.approx(names["row"]["disagreement_k16"], rel=1e-4)
    assert len(outputs[0].splitlines()) == 2 + len(bank[bank["context_id"] == 0])
    assert outputs[1].count("candidate") == 5


def test_what_the_page_says_of_the_example_is_what_it_printed() -> None:
    window, candidates = re.findall(r"```text\n(.*?)```", PROSE, re.DOTALL)
    outputs = window + candidates
    said = re.sub(r"```.*?```", "", PROSE, flags=re.DOTALL)
    numbers = re.findall(r"\b\d+\.\d{3}\b", said)
    assert len(numbers) >= 5
    assert [number for number in numbers if number not in outputs] == []
    rows = {int(line.split()[0]): line.split() for line in window.splitlines()[2:]}
    learnable, incompatible, gain = ({n: float(row[at]) for n, row in rows.items()} for at in (-4, -3, -1))
    assert max(learnable[40], incompatible[40], gain[40]) < 0.1
    assert rows[42][1:3] == ["8", "3"]
    assert incompatible[42] == 0.0
    assert gain[42] == max(gain.values())
    assert rows[44][1:3] == ["4", "servings"]
    assert incompatible[44] > learnable[44]
    assert rows[46][1] == "os"
    assert learnable[46] > 0.8 * learnable[42]
    assert gain[46] < 0.2 * gain[42]
