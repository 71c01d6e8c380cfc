"""The guest's memory: regions and mappings, which ranges may be discarded, the discard, SIGBUS."""
