"""``scripts/bench``, ``balloon-bench``: measures the figures that the project promises."""
