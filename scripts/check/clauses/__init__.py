"""The clauses that are judged: what the specifications say in numbered statements."""
