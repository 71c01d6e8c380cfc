"""Both halves of a ring joined in memory, on two processors whose stores wait in buffers: no process, no time."""
