"""Rollouts from elsewhere, turned into a `contexts` table that capture scores."""
