"""Minutes on the page of results: those that the runs recorded, over all starts of a stage."""

import json
from pathlib import Path

from tools.results_page import minutes_table


def test_minutes_are_summed_over_starts_and_unknown_where_one_did_not_end(tmp_path: Path) -> None:
    run = tmp_path / "pair"
    run.mkdir()
    events = [
        {"stage": "capture", "event": "begin"},
        {"stage": "capture", "event": "end", "seconds": 90.0},
        {"stage": "capture", "event": "begin"},
        {"stage": "capture", "event": "end", "seconds": 30.0},
        {"stage": "probes/one_step", "event": "begin"},
        {"stage": "analyze", "event": "begin"},
        {"stage": "analyze", "event": "end", "seconds": 12.0},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    other = tmp_path / "other"
    other.mkdir()
    assert minutes_table([run, other]).to_dict("records") == [
        {"run": "pair", "capture": "2.0", "analyze": "0.2"},
        {"run": "other", "capture": "-", "analyze": "-"},
    ]
