"""How a proxy passes bytes, descriptors and notifications from one side to the other."""
