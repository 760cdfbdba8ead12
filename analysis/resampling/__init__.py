"""Uncertainty: the prompt-cluster bootstrap, two-way draws, redrawn quantiles, many comparisons at once."""
