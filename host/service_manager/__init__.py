"""What the daemon and its service manager say to each other, and a small manager where there is no systemd."""
