"""The figures that the project promises, measured: ``scripts/bench`` or ``balloon-bench``."""
