"""The control socket (QMP), and what can be asked and ordered of one virtual machine over it."""
