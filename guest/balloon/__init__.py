"""The balloon driver: reporting, inflating and deflating, statistics, free page hinting, page poisoning."""
