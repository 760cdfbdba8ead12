"""Figures: the files, and that the artists hold the numbers of the tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from planted import World, plant
from stages import amend

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import CONTRASTS, MIN_CELL, PRIMARY
from teachdiag.cli import main
from teachdiag.errors import ArtefactError, RunError
from teachdiag.figures import plots
from teachdiag.figures.comparison import compare_runs
from teachdiag.figures.plots.buckets import buckets_figure
from teachdiag.figures.plots.coefficients import coefficients_figure, draw_coefficients
from teachdiag.figures.plots.deciles import draw_profile
from teachdiag.figures.plots.gain_surface import draw_gain_surface
from teachdiag.figures.plots.plane import plane_figure
from teachdiag.figures.plots.position_profile import position_profile_figure
from teachdiag.figures.plots.specification_curve import choice_levels, draw_curve, draw_matrix
from teachdiag.figures.plots.top_n import top_n_figure
from teachdiag.figures.publish import draw_figures, publish
from teachdiag.figures.run_tables import StepTables, load_tables, steps_of
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings

pytestmark = pytest.mark.slow

STEP_FIGURES = (
    *("coefficients", "q3_contrast", "proxies", "validity", "gain_surface", "deciles", "buckets", "top_n"),
    *("position_profile", "specification_curve"),
)
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = World(slope_learnable=0.06, slope_incompatible=0.01, null_theta0=True)
    run = plant(tmp_path_factory.mktemp("figures") / "run", world)
    run_analysis(run, AnalyzeSettings(draws=100), QUIET)
    return run


@pytest.fixture(scope="module")
def step(run: Path) -> StepTables:
    return steps_of(load_tables(run))[0]


def test_all_figures_are_written_and_the_same_twice(run: Path) -> None:
    files = draw_figures(run, QUIET)
    names = ("plane", "saturation", *STEP_FIGURES)
    assert {f.name for f in files} == {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    before = {f: f.read_bytes() for f in files}
    assert all(content.startswith((b"\x89PNG", b"<?xml", b"%PDF")) for content in before.values())
    draw_figures(run, QUIET)
    assert {f: f.read_bytes() for f in files} == before
    assert list((run / "figures").glob("*.part")) == []


def test_one_figure_alone_and_none_that_is_not_there(run: Path) -> None:
    assert [file.name for file in publish(run, QUIET, "plane")] == ["plane.png", "plane.svg", "plane.pdf"]
    assert [file.suffix for file in publish(run, QUIET, "top_n")] == [".parquet", ".csv", ".md", ".png", ".svg", ".pdf"]
    with pytest.raises(ArtefactError, match="has neither figure nor table 'lds': its figures are plane, saturation"):
        publish(run, QUIET, "lds")


def test_the_names_of_all_figures_and_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["teachdiag", "figures", "--list"])
    with pytest.raises(SystemExit, match="0"):
        main()
    listed = capsys.readouterr().out.splitlines()
    assert {
        "plane figure bank",
        "coefficients figure step",
        "lds figure lds",
        "q3_contrast table step",
        "token_lds table lds",
    } <= set(listed)
    modules = {path.stem for path in Path(plots.__file__).parent.glob("*.py")}
    drawn = {line.split()[0] for line in listed if " figure " in line}
    assert modules - drawn == {"__init__", "grid", "forest", "accuracy"}  # what figures share, and that of a training


def test_several_runs_in_one_table_that_says_how_they_differ(run: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "other", World(slope_learnable=0.02, seed=3))
    run_analysis(other, AnalyzeSettings(draws=100), QUIET)
    note = other / "probes/step.json"
    amend(note, lambda content: content["settings"].update(loss="forward_kl"))
    files = compare_runs([other, run])
    kinds = ("parquet", "csv", "md", "png", "svg", "pdf")
    pictures = {f"specification_curve.{kind}" for kind in kinds[3:]}
    claims = {f"claims.{kind}" for kind in kinds[:3]}
    assert {file.name for file in files} == {f"comparison.{kind}" for kind in kinds} | pictures | claims
    answered = pd.read_parquet(tmp_path / "comparison/claims.parquet").set_index(["claim", "run"])
    for name, own in (("other", other), ("run", run)):
        for row in PRIMARY.read(own / "analysis/primary.parquet").to_dict("records"):
            answer = answered.loc[row["claim"], name]
            assert [answer["status"], answer["estimate"]] == [row["status"], row["estimate"]]
    rows = pd.read_parquet(tmp_path / "comparison/comparison.parquet")
    assert list(dict.fromkeys(rows["run"])) == ["other", "run"]
    assert len(rows) == 2 * 3 * 2  # runs, K, designs
    page = (tmp_path / "comparison/comparison.md").read_text()
    assert "The runs differ in loss." in page
    for name, own in (("other", other), ("run", run)):
        theirs = CONTRASTS.read(own / "analysis/contrasts.parquet")
        theirs = theirs[(theirs["probe_id"] == "step") & (theirs["outcome"] == "gain")]
        theirs = theirs[theirs["score"] == "compatibility"]
        mine = rows[rows["run"] == name].set_index(["k", "design"])["estimate"]
        for row in theirs[theirs["design"] != "matched once"].itertuples():
            assert mine[row.k, row.design] == pytest.approx(row.estimate, nan_ok=True)


def test_coefficients_are_those_of_the_table(step: StepTables) -> None:
    rows = step.coefficients("one_step")
    ax = draw_coefficients(rows, Figure().subplots())
    for line, term in zip(ax.get_lines(), ("learnable", "incompatible"), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), rows[rows["term"] == term].sort_values("k")["estimate"])
    for bars, term in zip(ax.collections, ("learnable", "incompatible"), strict=True):
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_array_equal(ends, rows[rows["term"] == term].sort_values("k")[["ci_low", "ci_high"]])


def test_what_could_not_be_estimated_is_said(step: StepTables) -> None:
    panels = coefficients_figure(step).axes
    said = [any("not estimable" in text.get_text() for text in ax.texts) for ax in panels]
    assert said == [update == "theta0" for update in step.updates]


def test_profile_is_that_of_the_table(step: StepTables) -> None:
    rows = step.profile("one_step", "learnable", 16)
    ax = draw_profile(rows, Figure().subplots(), "k", "-", "o", "real step")
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), rows.sort_values("decile")["estimate"])


def test_surface_is_that_of_the_table_and_sparse_cells_are_blank(step: StepTables) -> None:
    cells = step.surface("gain_by_learnable_incompatible", 16, "one_step")
    drawn = draw_gain_surface(cells, Figure().subplots(), 1.0).get_array().reshape(10, 10)
    assert (cells["n_positions"] < MIN_CELL).any()
    for cell in cells.itertuples():
        if cell.n_positions >= MIN_CELL:
            assert drawn[cell.y_bin, cell.x_bin] == cell.value
        else:
            assert np.ma.is_masked(drawn[cell.y_bin, cell.x_bin])


def test_plane_marks_q3_and_states_its_medians(step: StepTables) -> None:
    figure = plane_figure(step)
    assert [ax.patches[-1].get_bbox().extents.tolist() for ax in figure.axes[:2]] == [[0, 50, 50, 100]] * 2
    assert f"{step.q3('median_forward_kl'):.3g} nats" in figure.get_supxlabel().replace("\n", " ")


def test_selectors_and_regions_hold_the_numbers_of_their_tables(step: StepTables) -> None:
    rows = step.top_n[(step.top_n["probe_id"] == "step") & (step.top_n["outcome"] == "gain")]
    mine = rows[(rows["selector"] == "learnable") & (rows["k"] == 16)].sort_values("budget")
    drawn = top_n_figure(step).axes[0].get_lines()[0]
    np.testing.assert_array_equal(drawn.get_ydata(), mine["estimate"])
    rows = step.buckets[(step.buckets["probe_id"] == "step") & (step.buckets["outcome"] == "gain")]
    rows = rows[(rows["score"] == "compatibility") & (rows["k"] == 16) & (rows["statistic"] == "mean")]
    lines = buckets_figure(step).axes[0].get_lines()
    for line, region in zip(lines, ("all", "q3"), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), rows[rows["region"] == region]["estimate"])


def test_specifications_are_sorted_over_the_choices_that_were_made(step: StepTables) -> None:
    rows = step.own_specifications
    rows = rows[(rows["quantity"] == "beta_L - beta_I") & rows["estimate"].notna()]
    levels = choice_levels(rows)
    assert [column for column, _ in levels].count("trimming") == 3
    assert "loss" not in dict(levels)  # which is the same everywhere
    curve, matrix = Figure().subplots(2)
    drawn = draw_curve(rows, curve)
    draw_matrix(drawn, levels, matrix)
    real = rows[rows["probe_id"] == "step"]
    size = real["outcome_spread"].where(real["measure"] == "per unit of norm", 1.0)
    np.testing.assert_allclose(curve.get_lines()[-3].get_ydata(), np.sort(real["estimate"] / size))
    shown = np.asarray(matrix.get_images()[0].get_array())[:: len(matrix.get_images()[0].get_array()) // len(levels)]
    for line, (column, value) in zip(shown, levels, strict=True):
        np.testing.assert_array_equal(line.astype(bool), drawn[column] == value)
    claimed = curve.get_lines()[-2].get_xdata()
    assert drawn["headline"].to_numpy().nonzero()[0].tolist() == list(claimed)
    greys = [line for line in curve.get_lines() if str(line.get_label()).startswith("placebo")]
    assert {len(line.get_ydata()) for line in greys} <= set(rows.groupby("probe_id").size())


def test_an_update_without_gain_leaves_the_position_axis_alone(step: StepTables) -> None:
    left, right = position_profile_figure(step).axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["0", "1", "2", "3-4", "5-8", "9-16", "17-29"]
    grey = right.get_lines()[1].get_ydata()
    assert sum(grey) == pytest.approx(1)


def test_figures_need_an_analysis(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no analyze stage: run `teachdiag analyze"):
        draw_figures(tmp_path, QUIET)
