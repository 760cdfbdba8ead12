"""Prompts to contexts: chat templates, rollouts, and the table that holds them."""
