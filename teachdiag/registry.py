"""Objects by name: those built in, and those that other installed packages add through an entry-point group.

A package adds an object in its `pyproject.toml`, and it is there wherever the built-in ones are:

    [project.entry-points."teachdiag.selectors"]
    late = "my_package.scores:late"
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, TypeVar

from teachdiag.errors import InputError, SettingsError, cause

T = TypeVar("T")
Check = Callable[[str, object], T]  # (how an error names it, as 'selector late'; what was loaded) -> the object


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to objects of one sort: built-in ones in their order, then installed ones by name.

    Entry points are looked up once a process, and loaded when they are first asked for.
    """

    def __init__(
        self,
        group: str,
        noun: str,
        built_in: Mapping[str, T],
        check: Check[T],
        hint: str = "",
        derived: Callable[[], Mapping[str, T]] = dict,
    ) -> None:
        """Take the built-in objects, and how others are found.

        Args:
            group: the entry-point group, as 'teachdiag.selectors'.
            noun: what one object is called in errors, as 'selector'.
            built_in: objects by name.
            check: returns what an entry point gave as the object that it stands for, or raises `InputError`.
            hint: ends the sentence about an unknown name.
            derived: makes further objects of what packages install under other groups.
        """
        self.group, self.noun, self._hint = group, noun, hint
        self._built_in, self._check, self._derived = built_in, check, derived
        self._loaded: dict[EntryPoint, T] = {}

    def __getitem__(self, name: str) -> T:
        """Return the object of a name.

        Raises:
            SettingsError: there is none of the name, or two; or what is installed under it cannot be loaded, or is
                nothing of this sort.
        """
        points = self._installed()
        if name in self._built_in:
            return self._built_in[name]
        derived = self._derived()
        if name in derived:
            return derived[name]
        if name not in points.names:
            near = get_close_matches(name, list(self))
            advice = f"did you mean {' or '.join(near)}? There are" if near else "choose from"
            raise SettingsError(f"no {self.noun} {name!r}: {advice} {', '.join(self)}{self._hint}")
        point = points[name]
        if point not in self._loaded:
            self._loaded[point] = load(f"{self.noun} {name}", point.load, self._check)
        return self._loaded[point]

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter((*self._built_in, *self._derived(), *sorted(self._installed().names)))

    def __len__(self) -> int:
        """Count the objects."""
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Say whether there is an object of the name, without loading it."""
        return name in self._built_in or name in self._derived() or name in self._installed().names

    def _installed(self) -> EntryPoints:
        """Return the entry points of the group, each name once.

        Raises:
            SettingsError: a name is taken.
        """
        points = installed(self.group)
        sources = [*((name, "another group") for name in self._derived()), *((p.name, p.value) for p in points)]
        first = dict.fromkeys(self._built_in, "teachdiag itself")
        for name, source in sources:
            if first.setdefault(name, source) != source:
                raise SettingsError(
                    f"the name {name} of entry-point group {self.group} is taken twice, by {first[name]} and by "
                    f"{source}: uninstall one, or rename it"
                )
        return points


def load(label: str, loader: Callable[[], object], check: Check[T]) -> T:
    """Return what foreign code gives, checked.

    Args:
        label: how an error names it, as 'selector late'.
        loader: imports and returns it.
        check: returns it as the object that it stands for, or raises `InputError`.

    Raises:
        InputError: one sentence, whatever went wrong.
    """
    with guarded(label, "cannot be loaded"):
        loaded = loader()
    return check(label, loaded)


def attribute(reference: str) -> object:
    """Return what 'module:name' names; whatever the import raises comes through."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@contextmanager
def guarded(label: str, failure: str) -> Iterator[None]:
    """Turn whatever foreign code raises, `sys.exit()` included, into one sentence that begins with the label.

    Raises:
        InputError: of the class that was raised if it was one, else `SettingsError`.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except InputError as error:
        raise type(error)(f"{label}: {error}") from error
    except BaseException as error:
        hint = "; its folder must be on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        raise SettingsError(f"{label} {failure}: {type(error).__name__}: {cause(error)}{hint}") from error


def described(objects: Registry[Any]) -> str:
    """Return names of objects with their `help`, for help texts; of one that cannot be loaded, its name alone."""
    texts = []
    for name in objects:
        try:
            texts.append(f"'{name}': {objects[name].help}")
        except InputError:
            texts.append(f"'{name}'")
    return "; ".join(texts)


@cache
def installed(group: str) -> EntryPoints:
    """Return the entry points of a group in this environment."""
    return entry_points(group=group)
