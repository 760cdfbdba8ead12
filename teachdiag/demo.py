"""What `teachdiag demo` runs: the stages, on the embedded pair, by recipes that come with the package."""

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def demo_commands(run: Path) -> list[list[str]]:
    """Return the words of each command behind `teachdiag`, in their order."""
    by_recipe = ("capture", "capture"), ("probe", "one_step"), ("probe", "efficiency")
    return [
        *([command, "--run", str(run), "--recipe", str(RECIPES / f"{name}.toml")] for command, name in by_recipe),
        ["analyze", str(run)],
    ]
