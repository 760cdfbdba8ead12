"""Estimates, sentences and tables of every kind of probe."""
