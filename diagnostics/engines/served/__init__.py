"""A teacher behind an address: vLLM's server, or SGLang's, that somebody else runs."""
