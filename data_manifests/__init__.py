"""Prompt sources: where each lies, which revision, which hash, which licence. No data."""
