"""Kinds of probe, and what all of them work with: the way back to theta0, updates, placebos."""
