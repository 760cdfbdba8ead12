"""Both models' distributions at every position, a tile of logits at a time: statistics and losses."""
