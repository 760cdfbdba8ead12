"""Every figure as it is printed: what it asks is above it, it can be read, its text stays text, in the dark too."""

import re
import shutil
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from legible import illegible
from matplotlib.figure import Figure
from planted import World, isolated_frame, plant, plant_isolated, plant_predicted, predicted_frame
from planted_efficiency import EfficiencyWorld, plant_efficiency
from planted_interventions import Experiment, plant_lds, plant_placebos, plant_selectors

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import POSITIONS
from teachdiag.errors import SettingsError
from teachdiag.figures import comparison, style
from teachdiag.figures.captions import Caption, read_captions
from teachdiag.figures.plots.accuracy import accuracy_figure
from teachdiag.figures.publish import _made, pictures, publish
from teachdiag.figures.run_tables import load_tables
from teachdiag.figures.style import COLUMN, WIDTH, Picture, blank_figure, darkened, save, theme
from teachdiag.plots import BANK, PLOTS, Plot
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from teachdiag.signals import lowered, raised

pytestmark = pytest.mark.slow

QUIET = Reporter(quiet=True)
LIGHT, DARK = (0xFF, 0xFF, 0xFF), (0x14, 0x17, 0x1D)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that have a probe of every kind that draws a figure."""
    folder, rng = tmp_path_factory.mktemp("legible"), np.random.default_rng(5)
    world = World(slope_learnable=0.06, slope_incompatible=0.01, mean_gain=0.01)
    run = plant(folder / "run", world)
    positions = POSITIONS.read(run / "positions")
    bank = positions[positions["split"] == "bank"].reset_index(drop=True)
    plant_isolated(run, isolated_frame(bank[::4].reset_index(drop=True), rng), noise_floor=1e-4)
    plant_predicted(run, predicted_frame(bank, rng), noise_floor=1e-7)
    effects = {"learnable": 0.02, "forward_kl": 0.01, "entropy": 0.005, "q3": 0.001, "random": 0.003}
    plant_selectors(run, positions, Experiment(effects=effects, budgets=(0.05, 0.1, 0.3), seeds=3))
    plant_lds(run, positions, rng.normal(0, 1, int((positions["split"] == "update").sum())), masks=40, noise=0.1)
    plant_placebos(run, positions, world, draws=3)
    efficient = folder / "efficient"
    plant_efficiency(
        efficient,
        EfficiencyWorld(contexts=20, positions=20, prompts=24, blocks=4, batch=8, mean=0.5, prompt_noise=0.3),
        selector="forward_kl,learnable,q3,entropy,released:dlearn_high",
    )
    for each in (run, efficient):
        run_analysis(each, AnalyzeSettings(draws=100), QUIET)
    return [run, efficient]


@pytest.fixture(scope="module")
def drawn(runs: list[Path]) -> list[dict[str, Picture]]:
    """The figures of each run."""
    return [{name: make() for name, make in pictures(load_tables(run)).items()} for run in runs]


@pytest.fixture(scope="module")
def published(runs: list[Path]) -> list[list[Path]]:
    """The files of each run's figures and tables, its figures as SVG alone, which is what reports hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "_FORMATS", {"svg": style._FORMATS["svg"]})
        return [publish(run, QUIET) for run in runs]


@pytest.mark.parametrize("name", list(PLOTS))
def test_every_figure_can_be_read_at_its_printed_width(drawn: list[dict[str, Picture]], name: str) -> None:
    picture = (drawn[0] | drawn[1])[name]
    with theme():
        assert picture.get_figwidth() == (WIDTH if name == "placebo_panel" else COLUMN)
        assert picture.get_figheight() <= 9  # of a page
        assert illegible(picture) == []
    assert picture.question == PLOTS[name].title
    assert picture.question.endswith("?")
    assert lowered(picture.get_suptitle()).replace("\n", " ") == picture.question
    assert picture.get_supxlabel() in ("", "decile of the score")  # the caption is not drawn
    assert re.search(r"\d", picture.seen)
    assert len(picture.caption) > 80


def test_the_curve_of_a_training_can_be_read() -> None:
    arms = [("learnable", 0.05, 0.3), ("learnable", 0.1, 0.35), ("tip", 0.05, 0.2), ("tip", 0.1, 0.3)]
    rows = pd.DataFrame([*arms, ("full", 1.0, 0.4)], columns=["arm", "budget", "estimate"])
    rows = rows.assign(ci_low=rows["estimate"] - 0.05, ci_high=rows["estimate"] + 0.05)
    rows.loc[len(rows)] = ("base", np.nan, 0.25, 0.2, 0.3)
    rows = rows.assign(measure="mean@k", against="", n_seeds=3, method="a bootstrap")
    with theme():
        picture = accuracy_figure(rows, "Held-out prompts of sums: 9, with 2 answers each")
        assert illegible(picture) == []
    assert "D^L 0.35 [0.3, 0.4]" in picture.seen
    assert "Share of right answers at 10% of the positions" in picture.seen


def test_figures_of_several_runs_can_be_read(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Picture] = []
    monkeypatch.setattr(comparison, "save", lambda picture, *_: [drawn.append(picture)][:0])
    other = Path(shutil.copytree(runs[0], runs[0].with_name("another-run-whose-name-is-long")))
    comparison.compare_runs([runs[0], other])
    with theme():
        assert [illegible(picture) for picture in drawn] == [[], []]
    assert "another-run-whose-name-is-long" in drawn[0].seen


def test_a_figure_without_a_place_for_its_caption_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"figure bare: matplotlib\.figure:Figure returns Figure: it must return a"):
        _made(Plot("bare", BANK, "Is it bare?", "matplotlib.figure:Figure"))


def test_what_cannot_be_read_is_found() -> None:
    """Each fault of a figure of a few texts, in words."""
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, "one", fontsize=8)
    assert illegible(figure) == []
    figure.text(0.12, 0.5, "two", fontsize=8)
    figure.text(0.1, 0.1, "tiny", fontsize=4)
    figure.text(0.9, 0.9, "outside", fontsize=8)
    found = illegible(figure)
    small, out, over = found
    assert small == "'tiny' has 4.0 points"
    assert out.startswith("'outside' leaves the canvas")
    assert over == "'one' lies over 'two'"


def test_files_captions_and_sizes(
    runs: list[Path], drawn: list[dict[str, Picture]], published: list[list[Path]]
) -> None:
    for run, pictures_of, files in zip(runs, drawn, published, strict=True):
        captions = read_captions(run)
        svg = [file for file in files if file.suffix == ".svg"]
        assert {file.stem for file in svg} == set(captions)
        assert len(svg) == 2 * len(captions)  # light and dark
        assert max(file.stat().st_size for file in svg) < 150_000
        page = (run / "figures/captions.md").read_text()
        assert captions.keys() == pictures_of.keys()
        for name, picture in pictures_of.items():
            assert captions[name] == Caption.of(picture)
            assert f"## {captions[name].question}\n\n![{captions[name].seen}]({name}.svg)" in page


@pytest.mark.usefixtures("svg_alone", "published")
def test_one_figure_again_leaves_the_captions_of_others(runs: list[Path]) -> None:
    before = read_captions(runs[0])
    publish(runs[0], QUIET, "plane")
    assert read_captions(runs[0]) == before
    assert len(before) > 10


def test_text_stays_text_and_is_read_on_both_grounds(tmp_path: Path) -> None:
    with theme():
        figure = blank_figure(2)
        figure.subplots().plot([1, 2], [3, 4], color="#0173b2", label="a line")
        figure.axes[0].set_xlabel("nats, in words")
        figure.ask("Is D^L text?")
        files = save(figure, tmp_path, "x")
    light, dark = (file for file in files if file.suffix == ".svg")
    assert dark == tmp_path / "dark/x.svg"
    for file, ground in ((light, LIGHT), (dark, DARK)):
        texts = [element for element in ElementTree.parse(file).iter() if element.tag.endswith("}text")]
        assert {"nats, in words", raised("Is D^L text?")} <= {"".join(text.itertext()) for text in texts}
        written = "".join(ElementTree.tostring(text).decode() for text in texts)
        colours = set(re.findall(r"#[0-9a-f]{6}", written))
        assert colours
        assert all(_contrast(colour, ground) > 7 for colour in colours)
    assert "#0173b2" in light.read_text()
    assert "#0173b2" not in dark.read_text()


def test_a_figure_is_saved_twice_at_its_resolution_and_left_as_it_was(tmp_path: Path) -> None:
    with theme():
        figure = blank_figure(2)
        ax = figure.subplots()
        figure.colorbar(ax.imshow([[1, 2], [3, 4]]))
        ax.scatter(np.arange(50), np.arange(50) % 7, rasterized=True)
        figure.ask("Is it sharp?")
        was = figure.dpi, figure.canvas, type(figure.get_layout_engine())
        saved = [save(figure, tmp_path / name, "x") for name in ("first", "again")]
        assert (figure.dpi, figure.canvas, type(figure.get_layout_engine())) == was
    for files in saved:
        drawn, pixels = {file.suffix: file.read_bytes() for file in files}, COLUMN * 200
        assert plt.imread(BytesIO(drawn[".png"])).shape[:2] == (400, round(pixels))
        widths = [int(width) for width in re.findall(rb"/Width (\d+)", drawn[".pdf"])]
        assert pixels / 2 < max(widths) <= pixels


def test_the_dark_variant_turns_greys_over_and_changes_nothing_else() -> None:
    assert darkened("fill: #ffffff; stroke: #000000; fill: #8c510a") == "fill: #14171d; stroke: #e8eaf0; fill: #8c510a"
    greys = [_luminance(darkened(f"#{value:02x}{value:02x}{value:02x}")) for value in range(0, 256, 15)]
    assert greys == sorted(greys, reverse=True)


def test_numbers_of_the_alternative_text_are_those_of_the_table(
    runs: list[Path], drawn: list[dict[str, Picture]]
) -> None:
    rows = load_tables(runs[1]).efficiency.query("match == 'norm' and statistic == 'share' and budget == 0.1")
    said = drawn[1]["efficiency"].seen
    (row,) = rows[rows["selector"] == "forward_kl"].to_dict("records")
    assert f"raw KL {row['estimate']:.3g} [{row['ci_low']:.3g}, {row['ci_high']:.3g}]" in said


def _luminance(colour: str) -> float:
    parts = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def _contrast(colour: str, ground: tuple[int, int, int]) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted((_luminance(colour), _luminance("#" + "".join(f"{part:02x}" for part in ground))))
    return (high + 0.05) / (low + 0.05)
