"""QEMU's own balloon as a device under test: registers over the qtest socket, no guest, no KVM, no root."""
