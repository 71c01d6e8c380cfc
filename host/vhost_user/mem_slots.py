"""How many memory regions a virtual machine may have (CONFIGURE_MEM_SLOTS)."""

from typing import Final

MEM_SLOTS: Final = 509
"""Most memory regions of one virtual machine, as libvhost-user and rust-vmm have it."""
