"""Metrics for Prometheus: what the control socket answers, as families, over HTTP."""
