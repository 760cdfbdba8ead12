"""Models behind vLLM: rollouts of the student, and teachers that do not fit beside it."""
