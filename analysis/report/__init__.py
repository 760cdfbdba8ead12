"""The analysis for people: sections, summary, and what goes into the pages of the documentation."""
