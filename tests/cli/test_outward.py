"""A run without Hub models looks nothing up, connects to nothing and asks nothing, in any of its stages.

The truth is kept by sockets and a standard input that note whoever touches them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stages import WORLDS, options

from teachdiag.settings import CaptureSettings

pytestmark = pytest.mark.slow


def test_nothing_looks_outside_and_nobody_is_asked(tmp_path: Path, tiny_settings: CaptureSettings) -> None:
    run, trained, quiet = str(tmp_path / "run"), str(tmp_path / "trained"), "--quiet"
    pair = ["--student", tiny_settings.student, "--teacher", tiny_settings.teacher, "--prompts", tiny_settings.prompts]
    few = ["--eval-prompts", "2", "--eval-samples", "1", "--eval-max-new-tokens", "4"]
    steps = ["--steps", "1", "--batch", "2", "--micro-batch", "2", "--train-prompts", "2", "--max-new-tokens", "4"]
    commands = {
        ("capture", *options(tiny_settings), "--run", run, quiet): 0,
        ("probe", "--run", run, "--name", "p", quiet): 0,
        ("analyze", run, "--draws", "100", quiet): 0,
        ("report", run, quiet): 0,
        ("train", *pair, *few, *steps, "--run", trained, quiet): 0,
        ("evaluate", tiny_settings.student, *pair[4:], *few, "--run", str(tmp_path / "judged"), quiet): 0,
        ("capture", *pair[:4], "--run", str(tmp_path / "long"), quiet): 2,  # the default prompts, made by a library
    }
    free = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VLLM_", "RAY_"))}
    command = [sys.executable, str(WORLDS / "outward_script.py"), json.dumps(list(commands))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=free | {"HF_HOME": str(tmp_path)}, input="y\n" * 9
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"tried": [], "codes": list(commands.values())}, done.stderr
