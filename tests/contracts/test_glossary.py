"""Words are explained where they stand, each once, and none that only looks alike."""

import re

from teachdiag.artefacts import FINDINGS
from teachdiag.glossary import STATUSES, explain, legend


def test_words_of_a_table_are_explained() -> None:
    cells = ["D^L", "C", "shuffled_teacher 0.1", "holds", "the step holds its course", "gap beside H x D", "0.2"]
    assert list(explain(cells)) == ["holds", "shuffled_teacher", "D^L", "C", "D", "H x D"]
    assert list(explain(cells, ["holds", "C", "D"])) == ["shuffled_teacher", "D^L", "H x D"]


def test_a_verdict_names_its_statuses_by_how_its_sentences_begin() -> None:
    sentences = ["Not shown at K=16: gain rises (0.1).", "The opposite holds at K=8: it falls.", "It is not judged."]
    assert list(explain(sentences)) == ["reversed", "not shown"]


def test_what_only_looks_alike_is_not_explained() -> None:
    assert explain(["CRV1 error", "D2", "K=16", "random", "learnable", "$x_C$"]) == {}
    assert legend({}) == ""


def test_figures_names_are_known_too() -> None:
    assert list(explain(["theta0, no step", "random direction", "D^I incompatible"])) == [
        *("theta0", "random_direction", "D^I")
    ]
    assert legend({"a": "one", "b": "two"}) == "a: one; b: two."


def test_every_status_of_the_findings_has_a_meaning() -> None:
    (status,) = (column for column in FINDINGS.columns if column.name == "status")
    assert set(re.findall(r"'([a-z ]+)'", status.meaning)) == set(STATUSES)
