"""The edge cases of the protocol, and what other suites and public reports try: what the cases have to cover."""
