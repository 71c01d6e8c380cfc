"""What all tests share: Hypothesis draws the same examples in every run, and no test fails for a busy machine."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
