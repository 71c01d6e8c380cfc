"""What balloon devices do differently, for the authors of drivers: one script of observations over all personalities.

``balloon-check personalities`` starts our daemon once for each ``--personality``, does the same to each, and prints a
table of what was seen: which queue took reports, the used length of a report, which pages went. A driver that relies on
one column breaks on another.
"""
