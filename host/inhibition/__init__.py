"""Whether pages of a virtual machine may be discarded at all: the operator's word, and what its process shows."""
