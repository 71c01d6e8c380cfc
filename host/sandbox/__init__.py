"""What a worker is kept from, by the kernel."""
