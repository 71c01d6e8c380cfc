"""The driver's half of a virtqueue: split and packed, and the guest memory that rings take."""
