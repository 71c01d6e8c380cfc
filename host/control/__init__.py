"""The control socket (QMP), and the controls of one virtual machine that its commands use."""
