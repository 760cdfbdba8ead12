"""The HTML report: one file that opens from disk, with the verdict, the evidence and the tokens themselves."""
