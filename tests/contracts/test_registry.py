"""Registries of built-in and installed objects: what an entry point gives is there by name, or refused in a sentence.

The truth is the environment itself: a distribution's metadata in a folder on `sys.path`, as pip leaves it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from teachdiag.errors import InputError, SettingsError
from teachdiag.registry import Registry

Install = Callable[..., None]


def _number(label: str, loaded: object) -> int:
    if not isinstance(loaded, int):
        raise SettingsError(f"{label} is {loaded!r}, no whole number")
    return loaded


def _numbers(built_in: Mapping[str, int] = {"two": 2, "one": 1}) -> Registry[int]:
    return Registry("teachdiag.toys", "toy", built_in, _number, hint=", or none")


def test_installed_objects_stand_behind_the_built_in_ones(plug_in: Install) -> None:
    assert list(_numbers()) == ["two", "one"]
    plug_in("toy_numbers", "nine = 9\nfour = 4", {"teachdiag.toys": {"nine": "nine", "four": "four"}})
    numbers = _numbers()
    assert dict(numbers) == {"two": 2, "one": 1, "four": 4, "nine": 9}
    assert len(numbers) == 4
    assert "four" in numbers
    assert "three" not in numbers
    with pytest.raises(
        SettingsError, match=r"^no toy 'tow': did you mean two.*There are two, one, four, nine, or none$"
    ):
        numbers["tow"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 'words'", "^toy x is 'words', no whole number$"),
        ("import sys\nsys.exit(3)", "^toy x cannot be loaded: SystemExit: 3$"),
        ("1 / 0", "^toy x cannot be loaded: ZeroDivisionError: division by zero$"),
        ("y = 3", "^toy x cannot be loaded: AttributeError: module 'toy_broken' has no attribute 'x'$"),
        (
            "from teachdiag.errors import ModelError\nraise ModelError('a line')",
            "^toy x: a line$",
        ),
    ],
)
def test_what_is_broken_is_refused_by_name_when_it_is_asked_for(plug_in: Install, text: str, sentence: str) -> None:
    plug_in("toy_broken", text, {"teachdiag.toys": {"x": "x"}})
    numbers = _numbers()
    assert numbers["two"] == 2
    with pytest.raises(InputError, match=sentence):
        numbers["x"]


def test_a_name_taken_twice_is_refused(plug_in: Install) -> None:
    plug_in("toy_first", "x = 1", {"teachdiag.toys": {"x": "x"}})
    plug_in("toy_second", "x = 2", {"teachdiag.toys": {"x": "x"}})
    with pytest.raises(
        SettingsError, match=r"^the name x of entry-point group teachdiag\.toys is taken twice, by toy_"
    ):
        _numbers()["two"]
    with pytest.raises(SettingsError, match="taken twice, by teachdiag itself and by toy_"):
        _numbers({"x": 1})["x"]


def test_entry_points_are_loaded_once(plug_in: Install, tmp_path: Path) -> None:
    counted = f"with open({str(tmp_path / 'count')!r}, 'a') as count:\n    count.write('x')\nx = 1"
    plug_in("toy_counted", counted, {"teachdiag.toys": {"x": "x"}})
    numbers = _numbers()
    assert not (tmp_path / "count").exists()
    assert numbers["x"] + numbers["x"] == 2
    assert (tmp_path / "count").read_text() == "x"
