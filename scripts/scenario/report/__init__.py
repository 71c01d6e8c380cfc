"""The report of a run: one HTML file with one time axis for the host and all machines."""
