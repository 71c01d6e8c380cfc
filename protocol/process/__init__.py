"""Access of every command to the operating system: options, events, sockets to listen on."""
