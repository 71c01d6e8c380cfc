"""The control socket, its commands, and the controls of one virtual machine that they use."""
