"""Who owns each page of a guest: the states of a page, and both halves of the balloon interleaved by a seed."""
