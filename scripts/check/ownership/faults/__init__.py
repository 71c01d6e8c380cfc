"""What can be done wrong in a world, on either side."""
