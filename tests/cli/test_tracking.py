"""`--report-to`: what a tracker is given, by a stand-in with the functions that trackio and wandb share."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from planted import claims_alone

from teachdiag import preflight
from teachdiag.cli import main
from teachdiag.progress import Reporter
from teachdiag.tracking import Tracker, tracking


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What a stand-in for both packages is given, call by call."""
    calls: list[tuple[str, Any]] = []

    def init(**how: Any) -> None:
        print("hello")  # as trackio does
        calls.append(("init", how))

    for name in ("trackio", "wandb"):
        module: Any = ModuleType(name)
        module.init, module.log = init, lambda metrics: calls.append(("log", metrics))
        module.finish = lambda: calls.append(("finish", None))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(preflight, "distribution", lambda name: name)
    return calls


@pytest.mark.slow
def test_a_stage_is_tracked_and_its_json_stays_clean(
    given: list[tuple[str, Any]], analysed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", str(analysed), "--draws", "100", "--report-to", "trackio", "--json"]
    monkeypatch.setattr(sys, "argv", ["teachdiag", *words])
    monkeypatch.setattr("teachdiag.figures.publish.publish", lambda *_: [])
    claims_alone(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    summary = json.loads(capsys.readouterr().out)
    assert [call for call, _ in given if call != "log"] == ["init", "finish"]
    how = given[0][1]
    assert (how["project"], how["name"]) == ("teachdiag", f"{analysed.name} analyze")
    assert how["config"].items() >= {"stage": "analyze", "draws": 100}.items()
    logged = [metrics for call, metrics in given if call == "log"]
    assert any(name.startswith("progress/") for metrics in logged[:-1] for name in metrics)
    assert logged[-1]["results/verdict"] == "\n".join(summary["verdict"])
    assert "report_to" not in json.loads((analysed / "analyze.json").read_text())["settings"]


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_tracker_ends_with_what_it_tracks(
    package: Any, given: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{package.upper()}_PROJECT", "mine")
    summary = {"n": 2, "none": None, "draws": [{"gain": 0.5}], "said": ["a", "b"], "no": []}
    with suppress(KeyError), tracking(package, "capture", Path("runs/a"), {"seed": 3}) as tracks:
        tracks.results(summary)
        raise KeyError
    assert given == [
        ("init", {"project": "mine", "name": "a capture", "config": {"stage": "capture", "run": "runs/a", "seed": 3}}),
        ("log", {"results/n": 2, "results/draws/0/gain": 0.5, "results/said": "a\nb"}),
        ("finish", None),
    ]


def test_bars_are_watched_each_second_and_at_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    clock = iter([0.0, 0.4, 0.9, 1.2, 1.3])
    monkeypatch.setattr("teachdiag.tracking.time.monotonic", lambda: next(clock))
    reporter = Reporter(quiet=True, watch=Tracker(told.append).progress)
    assert list(reporter.track("abcde", "Letters", done=2)) == list("abcde")
    assert told == [{"progress/Letters": n} for n in (3, 6, 7)]
    list(reporter.inside("another").track("ab", "Hidden"))
    assert len(told) == 3


def test_a_missing_tracker_is_one_sentence(tmp_path: Path, refused: Callable[..., str]) -> None:
    for package in ("trackio", "wandb"):
        told = refused("capture", "--run", tmp_path / "run", "--report-to", package)
        assert told == (
            f"teachdiag: --report-to needs {package}, which is not installed: pip install 'teachdiag[{package}]'"
        )
    assert "--report-to" in refused("probe", "--run", tmp_path / "run", "--report-to", "abacus")
