"""What is kept of a virtual machine beyond the process that supervises it, with the service manager."""
