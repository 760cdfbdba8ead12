"""Answers to problems: where one stands in a text, what it says as mathematics, whether two say the same."""
