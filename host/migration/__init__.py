"""What a virtual machine that moves takes along: the dirty log and the device state."""
