"""Places that fail, and processes that meet: one sentence that names the place, exit code 2, nothing half-written.

The truth is the operating system's: disks that are full or read-only, limits, locks, signals.
"""

import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from planted import World, plant
from stages import options

from teachdiag.analysis.analyze import run_analysis
from teachdiag.errors import PlaceError, RunError
from teachdiag.figures.publish import publish
from teachdiag.progress import Reporter
from teachdiag.runs import joining, writing
from teachdiag.settings import AnalyzeSettings, CaptureSettings
from teachdiag.tables import write_text

QUIET = Reporter(quiet=True)
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning", "ignore::FutureWarning")

ANALYZE = ("--draws", "100")
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plant(tmp_path_factory.mktemp("planted") / "run", World(slope_learnable=0.06))
    run_analysis(run, AnalyzeSettings(draws=100), QUIET)
    publish(run, QUIET, "plane")
    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small or read-only disks, where the system lets us."""
    mounted = []

    def mount(*words: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        if subprocess.run(["mount", *words, str(place)], capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk(
    disk: Callable[..., Path], refused: Refused, analysed: Path, tiny_settings: CaptureSettings
) -> None:
    place = disk("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    told = refused("capture", "--run", place / "run", *options(tiny_settings), "--quiet")
    assert re.search(r"/disk/run/\S+ cannot be used: No space left on device: free some space", told)
    assert not list(place.rglob("*.part"))
    shutil.rmtree(place / "run")
    subprocess.run(["mount", "-o", "remount,size=32m", str(place)], check=True)
    shutil.copytree(analysed, place / "run")
    used = (32 << 20) - shutil.disk_usage(place).free
    subprocess.run(["mount", "-o", f"remount,size={used}", str(place)], check=True)
    for command in (["figures", place / "run"], ["analyze", place / "run", *ANALYZE]):
        assert "No space left on device: free some space" in refused(*command, "--quiet")
        assert not list(place.rglob("*.part"))


def test_a_run_that_can_only_be_read(disk: Callable[..., Path], refused: Refused, analysed: Path) -> None:
    run = disk("--bind", "-o", "ro", str(analysed))
    for command in ("analyze", "figures", "report"):
        assert f"{run} cannot be used as a run directory" in (told := refused(command, run, "--quiet"))
        assert "Read-only file system: choose another place, or copy the run" in told
    assert "Read-only" in refused("capture", "--run", run, "--quiet")


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(PlaceError, match=r"/big.txt cannot be used: File too large: raise the limit"):
            write_text("x" * 5000, tmp_path / "big.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["capture", "probe", "train", "evaluate", "analyze", "figures", "report"])
@pytest.mark.parametrize("fault", ["is a file", "inside a file", "name too long"])
def test_no_run_directory(tmp_path: Path, refused: Refused, command: str, fault: str, manifest_path: str) -> None:
    (tmp_path / "file").write_text("")
    run = tmp_path / {"is a file": "file", "inside a file": "file/run", "name too long": "r" * 300}[fault]
    words = {"train": ["--prompts", manifest_path], "evaluate": ["embedded", "--prompts", manifest_path]}
    place = [run] if command in ("analyze", "figures", "report") else ["--run", run]
    told = refused(command, *place, *words.get(command, []), "--quiet")
    assert str(run)[:40] in told
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file"]


@pytest.mark.slow
def test_two_processes_on_one_run(analysed: Path, refused: Refused) -> None:
    with _held_elsewhere(analysed):
        for command in ("analyze", "figures", "report"):
            assert "is in use by another teachdiag process" in refused(command, analysed, "--quiet")
        with pytest.raises(RunError, match="in use"):
            publish(analysed, QUIET, "plane")
    with joining(analysed), joining(analysed):
        pass
    with writing(analysed), joining(analysed):
        publish(analysed, QUIET, "plane")


class _held_elsewhere:
    """Another process that holds a run."""

    def __init__(self, run: Path) -> None:
        code = f"from teachdiag.runs import *\nwith writing(Path({str(run)!r})):\n print(flush=True); input()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> None:
        assert self.process.stdout
        self.process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self.process.communicate("\n")


def test_what_a_killed_process_left_is_removed(analysed: Path) -> None:
    left, theirs = analysed / "figures/plane.png.4711.part", analysed / "figures/film.part"
    for file in (left, theirs):
        file.write_text("")
    publish(analysed, QUIET, "plane")
    assert not left.exists()
    assert theirs.exists()
    theirs.unlink()  # other tests share the run


WORKERS = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from teachdiag.runs import end_with_parent

def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(100)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), end_with_parent) as pool:
        list(pool.map(work, [sys.argv[1]] * 2))
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WORKERS)
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path / "pids")])
    pids = _waited(lambda: [int(file.name) for file in (tmp_path / "pids").iterdir()], 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _waited(lambda: [pid for pid in pids if not _alive(pid)], 2) == sorted(pids)


def _waited(found: Callable[[], list[int]], count: int) -> list[int]:
    for _ in range(600):
        if len(there := found()) == count:
            return sorted(there)
        time.sleep(0.05)
    raise AssertionError(f"{found()} after half a minute")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_refused_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(RunError), writing(tmp_path / name):
            raise RunError("refused")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "there").is_dir()
    with writing(tmp_path / "new"):
        (tmp_path / "new/capture.json").write_text("{}")
    assert (tmp_path / "new/capture.json").exists()
