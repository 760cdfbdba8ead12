"""Kind lds: a step on each of many random masks of one update batch."""

import pyarrow as pa

from teachdiag.diagnostics.probes.interventions import InterventionMeasurement
from teachdiag.diagnostics.probes.masks import Cell, mask_cells
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup


class Lds(InterventionMeasurement):
    """Steps restricted to random positions."""

    matches = ("rate",)

    def cells(self, setup: ProbeSetup, inner_products: pa.Table) -> list[Cell]:
        """Return the random masks."""
        return mask_cells(setup, inner_products)
