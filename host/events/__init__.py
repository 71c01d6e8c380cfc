"""What is told of a virtual machine: counters, events about chains, and how many there may be."""
