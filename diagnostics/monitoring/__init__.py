"""A look at somebody else's training while it runs: a frozen bank and the live batch, scored every few steps."""
