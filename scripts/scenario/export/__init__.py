"""Results of a run for other programs: CSV, Parquet, JSON, and a trace that Perfetto loads."""
