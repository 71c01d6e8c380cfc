"""What the emulated machine can be made to do with its memory, one file for each kind."""
