"""The device's half of a virtqueue: split and packed, and where the parts of a ring lie."""
