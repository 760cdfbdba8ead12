"""What was measured, as the analysis reads it: tables, columns on demand, normalised scores."""
