"""Score tables, result files and figures."""
