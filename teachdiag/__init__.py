"""teachdiag: which of the teacher's token-level signals can this student actually learn?

This package is the door: contracts (`artefacts`, `settings`, `runs`, `manifests`) and the command line (`cli`).
The work is done in three rooms that meet only through the tables of a run directory:
`teachdiag.diagnostics` (models in, tables out), `teachdiag.analysis` (tables in, estimates out) and
`teachdiag.figures` (estimates in, pictures out).
"""

from importlib.metadata import version

__version__ = version("teachdiag")
