"""The tools that users run. The only package besides the tests that may import both ``guest`` and ``host``."""
