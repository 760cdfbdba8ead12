"""What is refused before models' libraries are imported: one process is given every slip, and none imports them."""

import json
import subprocess
import sys
from pathlib import Path

from teachdiag.artefacts import CONTEXTS
from teachdiag.tables import write_parquet

_GIVE = """
import json, sys
from teachdiag.cli import main
told = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["teachdiag", *words]
    try:
        main()
    except SystemExit as error:
        told.append(error.code)
    heavy = {"torch", "transformers", "datasets", "trl", "statsmodels", "matplotlib", "pandas"} & set(sys.modules)
    assert not heavy, (words, heavy)
print(json.dumps(told))
"""


def test_slips_are_refused_before_anything_heavy_is_imported(tmp_path: Path, manifest_path: str) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/capture.json").write_text("{")
    (tmp_path / "damaged/train.json").write_text("[]")
    (tmp_path / "recipe.toml").write_text("[capture]\nsead = 1\n")
    write_parquet(CONTEXTS.build_rows([]), tmp_path / "c.parquet")
    contexts, to_table = ("--contexts", "c.parquet"), ("--student", "embedded", "--contexts", "out.parquet")
    nothing, damaged = str(tmp_path / "nothing"), str(tmp_path / "damaged")
    slips = {
        ("capture", "--bank-prompts", "0"): "--bank-prompts is 0",
        ("capture", "--prompts", "gsm9k", "--run", nothing): "no prompt manifest 'gsm9k'",
        (
            "capture",
            "--prompts",
            manifest_path,
            "--data-file",
            "no.jsonl",
            "--run",
            nothing,
        ): "no data file at no.jsonl",
        (
            "capture",
            "--prompts",
            manifest_path,
            "--data-file",
            manifest_path,
            "--run",
            nothing,
        ): "prompts are read from",
        ("capture", "--student", "./no-model", "--run", nothing): "model './no-model' does not exist",
        ("capture", "--teacher", "/no/model", "--run", nothing): "model '/no/model' does not exist",
        ("capture", "--teacher", "runs/no/model", "--run", nothing): "'runs/no/model' is no folder here, and cannot be",
        ("capture", "--contexts", "no.parquet", "--run", nothing): "no contexts table at no.parquet",
        ("capture", "--run", str(tmp_path / "taken")): "taken is a file",
        ("capture", "--run", damaged): "capture.json is damaged",
        ("capture", "--recipe", str(tmp_path / "recipe.toml")): "[capture] has no option sead",
        ("probe", "--run", nothing): "has no capture stage",
        ("probe", "--run", damaged): "capture.json is damaged",
        ("analyze", nothing): "has no capture stage",
        ("figures", nothing): "has no capture stage",
        ("report", nothing): "has no capture stage",
        ("train", "--selector", "learnible", "--run", nothing): "no selector 'learnible'",
        ("train", "--sweep", "no.toml", "--run", nothing): "'no.toml' cannot be read",
        ("train", "--trl", "{", "--run", nothing): "--trl is '{'",
        ("train", "--trl", '{"learning_rate": 1}', "--run", nothing): "--trl sets learning_rate",
        ("train", "--report-to", "wandb", "--run", nothing): "--report-to needs wandb",
        ("train", "--run", damaged): "train.json is damaged",
        ("evaluate", "./no-model", "--run", nothing): "model './no-model' does not exist",
        (
            "capture",
            *contexts,
            "--responses",
            "3",
            "--run",
            nothing,
        ): "--responses belongs to --prompts",
        ("capture", *contexts, "--seed", "3", "--run", nothing): "--seed belongs to --prompts",
        ("capture", "--revision", "v1", "--run", nothing): "--revision belongs to models on the Hub, and none is",
        ("capture", "--teacher-revision", "v1", "--run", nothing): "--teacher-revision belongs to a teacher on the Hub",
        ("evaluate", "embedded", "--revision", "v1", "--run", nothing): "--revision belongs to models on the Hub",
        ("import", "trl", manifest_path, *to_table, "--revision", "v1"): "--revision belongs to models on the Hub",
        ("train", "--clip-norm", "1e-9", "--run", nothing): "--clip-norm is 1e-09: it must be 0, or at least 1e-06",
        ("probe", "--clip-norm", "-1", "--run", nothing): "--clip-norm is -1.0: it must be 0, or at least 1e-06",
        ("import", "verl", "no.jsonl", "--student", "x", "--contexts", "c.parquet"): "no file or folder no.jsonl",
        ("import", "trl", manifest_path, "--student", "./x", "--contexts", "c.parquet"): "model './x' does not exist",
        ("plan", "--calibration", "no.json"): "there is no calibration at no.json",
    }
    command = [sys.executable, "-c", _GIVE, json.dumps(list(slips))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2] * len(slips)
    for said, expected in zip(done.stderr.splitlines(), slips.values(), strict=True):
        assert said.startswith("teachdiag: ")
        assert expected in said
    assert not (tmp_path / "nothing").exists()
