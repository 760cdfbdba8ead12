"""Names of probes: the kind, with a number where a run has several. What tells these apart stands in their notes."""

from itertools import count
from pathlib import Path
from typing import Any

from teachdiag.runs import Stage, probe_names
from teachdiag.settings import ProbeSettings


def find_or_name(run: Path, settings: ProbeSettings) -> tuple[str, dict[str, Any]]:
    """Return the name of the run's probe of these settings, or of a new one; and the settings as its note has them.

    A name that is given is taken as it is. Else the probe is the one that was made with these very settings, whatever
    it is called; where there is none, the first of `one_step`, `one_step-2`, ... that is free.

    Raises:
        RunError: a note is damaged.
    """
    wanted, taken = settings.as_dict(), probe_names(run)
    for name in [settings.name] if settings.name else taken:
        note = Stage(run, f"probes/{name}").read()
        if note is None:
            continue
        theirs = settings.defaults() | note["settings"]
        ours = wanted | {"name": theirs["name"]}
        if settings.name or ours == theirs:
            return name, ours
    numbered = (settings.kind if number == 1 else f"{settings.kind}-{number}" for number in count(1))
    return settings.name or next(name for name in numbered if name not in taken), wanted
