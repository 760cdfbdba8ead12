"""The pair: pinned, checked, loaded, cut at its LM head, shared over processes; and how it reads contexts."""
