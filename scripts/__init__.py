"""What a person runs from a checkout. The only place outside the tests where ``guest`` and ``host`` meet."""
