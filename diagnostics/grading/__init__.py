"""Is an answer right? Found in a text, read, and compared in a process of its own."""
