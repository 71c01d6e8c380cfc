"""What all tests share: Hypothesis draws the same examples in every run, and no test fails for a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")
