"""Selective on-policy distillation of one student; the testbed that teaches its own pair."""
