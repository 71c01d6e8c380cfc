"""The command that begins a QMP session (QEMU docs/interop/qmp-spec.rst)."""

from typing import Final

NEGOTIATE: Final = "qmp_capabilities"
"""The command that a client must send first. This server has no capabilities to enable."""
