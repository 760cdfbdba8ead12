"""`teachdiag plan --from`: what an effect needs, against the law of the standard error and against repeated plans."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from planted import World, claims_alone, plant
from planted_efficiency import EfficiencyWorld, plant_efficiency
from scipy.stats import norm
from typer.testing import CliRunner

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.report.prompts_needed import EFFICIENCY_CLAIM, prompts_needed
from teachdiag.analysis.step.claims import PRIMARY_CLAIMS
from teachdiag.artefacts import EFFICIENCY, PRIMARY
from teachdiag.calibration import Calibration, Measured, write_calibration
from teachdiag.cli import app
from teachdiag.errors import RunError, SettingsError
from teachdiag.planning import plan
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import AnalyzeSettings, PlanSettings

PROMPTS, POSITIONS = 24, 30
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plant(
        tmp_path_factory.mktemp("planned") / "run", World(prompts=PROMPTS, slope_learnable=0.02, mean_gain=0.01)
    )
    with pytest.MonkeyPatch.context() as patch:
        claims_alone(patch, refits=True)
        run_analysis(run, AnalyzeSettings(draws=100, fold_repeats=1), QUIET)
    return run


def asked(run: Path, **settings: Any) -> dict[str, Any]:
    return prompts_needed(run, PlanSettings(from_=str(run), **settings))


def timed(run: Path, **seconds: float) -> None:
    """Let the run's log say how long its stages took."""
    lines = []
    for name, taken in seconds.items():
        stage = name.replace("probe", "probes/step")
        lines += [{"stage": stage, "event": "begin"}, {"stage": stage, "event": "end", "seconds": taken}]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_effect_of_half_the_size_needs_four_times_the_prompts(run: Path) -> None:
    large, small = (asked(run, detect=effect, claim="rank")["claims"] for effect in (0.02, 0.01))
    assert [claim["claim"] for claim in large] == [c.finding for c in PRIMARY_CLAIMS if "rank" in c.finding]
    for one, other in zip(large, small, strict=True):
        assert other["prompts"] == pytest.approx(4 * one["prompts"], abs=4)
        assert one["positions"] == one["prompts"] * POSITIONS


def test_what_is_detectable_needs_the_prompts_that_there_are(run: Path) -> None:
    for claim in asked(run)["claims"]:
        limit = max(claim["detectable"].values())
        (again,) = asked(run, detect=limit, claim=claim["claim"])["claims"]
        assert again["prompts"] in (PROMPTS, PROMPTS + 1)  # rounded up


def test_by_default_the_effect_is_what_the_run_found(run: Path) -> None:
    primary = PRIMARY.read(PRIMARY.file(run)).set_index("claim")
    for claim in asked(run)["claims"]:
        row = primary.loc[claim["claim"]]
        assert claim["effect"] == abs(row["estimate"])
        assert claim["prompts"] == (None if row.isna()["prompts_needed"] else row["prompts_needed"])


def test_prompts_by_the_law_of_the_standard_error(run: Path) -> None:
    row = PRIMARY.read(PRIMARY.file(run)).set_index("claim").loc["the step helps"]
    of_number = row["estimate"], row["ci_low"], row["ci_high"], row["std_error"]
    of_margin = row["margin"], row["margin_low"], row["margin_high"], row["margin_error"]  # of one draw of the placebo
    limits = [limit(*numbers, n_prompts=math.inf) for numbers in (of_number, of_margin)]
    (claim,) = asked(run, detect=1e-4, claim="helps")["claims"]
    assert claim["prompts"] == pytest.approx(PROMPTS * (max(limits) / 1e-4) ** 2, rel=0.02)


def limit(estimate: float, low: float, high: float, error: float, n_prompts: float) -> float:
    """What is seen with 80% power: beyond the nearer end, by 0.84 of that end's own standard error."""
    near, far = (estimate - low, high - estimate) if estimate > 0 else (high - estimate, estimate - low)
    scatter = math.hypot(error * near / far, near / math.sqrt(2 * (n_prompts - 1)))
    return float(near + norm.ppf(0.8) * scatter)


def test_hours_grow_from_what_the_stages_took(run: Path) -> None:
    timed(run, capture=90, probe=60, analyze=6)
    found = asked(run, detect=0.001, claim="helps")
    (claim,) = found["claims"]
    more = claim["prompts"] / PROMPTS
    update = 3
    assert claim["seconds"] == pytest.approx(
        {"capture": 90 * (more * PROMPTS + update) / (PROMPTS + update), "probe": 60 * more, "analyze": 6 * more}
    )
    assert claim["hours"] == pytest.approx(sum(claim["seconds"].values()) / 3600)
    assert "own stages" in found["timed_by"]


def test_without_the_runs_own_times_a_calibration_tells_them(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path))
    (run / "events.jsonl").write_text('{"stage": "capture", "event": "begin"}\n')  # which was killed
    unknown = asked(run, detect=0.001, claim="helps")
    assert unknown["claims"][0]["hours"] is None
    assert unknown["timed_by"].startswith("unknown")
    measured = Measured(**dict.fromkeys(Measured.__dataclass_fields__, 1e6))
    calibration = Calibration(measured, "float32", {"device_name": "a desk", "threads": 1})
    write_calibration(calibration, tmp_path / "calibration.json")
    found = asked(run, detect=0.001, claim="helps")
    (claim,) = found["claims"]
    planned = PlanSettings(positions=(claim["prompts"] + 3) * POSITIONS, positions_per_context=POSITIONS)
    assert claim["seconds"] == plan(planned, calibration)["time_seconds"]
    assert "a desk" in found["timed_by"]


def test_the_seconds_of_a_stage(tmp_path: Path) -> None:
    assert Stage(tmp_path, "capture").seconds() is None
    timed(tmp_path, capture=5, analyze=7)
    with (tmp_path / "events.jsonl").open("a") as log:
        for seconds in (2, 3):
            for stage in ("capture", "analyze"):
                log.write(f'{{"stage": "{stage}"}}\n{{"stage": "{stage}", "seconds": {seconds}}}\n')
    assert Stage(tmp_path, "capture").seconds() == 10  # continued twice
    assert Stage(tmp_path, "analyze").seconds() == 3  # made anew twice
    (tmp_path / "events.jsonl").write_text("{half a line")
    assert Stage(tmp_path, "capture").seconds() is None


def test_the_command_prints_a_table_or_json(run: Path, tmp_path: Path) -> None:
    timed(run, capture=90, probe=60, analyze=6)
    words = ["plan", "--from", str(run), "--detect", "0.01"]
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 110
    assert "80% power" in shown.stdout
    as_json = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert as_json == json.loads(json.dumps(asked(run, detect=0.01)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[plan]\nfrom = "{run}"\ndetect = 0.01\njson = true\n')
    assert json.loads(CliRunner().invoke(app, ["plan", "--recipe", str(recipe)]).stdout) == as_json


@pytest.mark.slow
def test_what_selectors_keep_needs_update_contexts_as_well(tmp_path: Path) -> None:
    run, world = tmp_path / "run", EfficiencyWorld(contexts=24, positions=20, prompts=24)
    plant_efficiency(run, world, selector="forward_kl,learnable,random")
    run_analysis(run, AnalyzeSettings(draws=200, fold_repeats=1), QUIET)
    (found,) = asked(run, detect=0.1)["claims"]
    assert found["claim"] == EFFICIENCY_CLAIM
    rows = EFFICIENCY.read(EFFICIENCY.file(run)).query(
        "selector == 'learnable' and budget == 0.1 and match == 'norm' and statistic == 'share_vs_base'"
    )
    (row,) = rows.to_dict("records")
    seen = limit(row["estimate"], row["ci_low"], row["ci_high"], row["draw_error"], row["n_prompts"])
    assert found["detectable"] == {"from_0": pytest.approx(seen), "from_placebo": None}
    more = found["prompts"] / 24
    assert more == pytest.approx((seen / 0.1) ** 2, rel=0.05)  # the interval's width is better known with more
    assert found["update_contexts"] == pytest.approx(more * 24, abs=1.1)
    assert found["norm_batches"] == pytest.approx(more * 2, abs=1.1)
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["plan", "--from", str(run)])
    assert "update contexts and --norm-batches" in shown.stdout


def test_what_cannot_be_answered_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'weather' is in the name of no primary claim: there are the step helps; "):
        asked(run, claim="weather")
    bare = plant(tmp_path / "bare", World(prompts=8, positions=4))
    with pytest.raises(RunError, match=f"{bare} has no analyze stage: run `teachdiag analyze {bare}` first"):
        asked(bare)
    with pytest.raises(SettingsError, match=r"^--detect belongs to --from RUN"):
        PlanSettings(detect=0.1)
    with pytest.raises(SettingsError, match=r"^--positions belongs to a plan without --from"):
        PlanSettings(from_="runs/demo", positions=10)
    with pytest.raises(SettingsError, match=r"^--detect is 0: it must be above 0"):
        PlanSettings(from_="runs/demo", detect=0)
