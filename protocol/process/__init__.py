"""What every command of the project needs of the operating system: options, events, sockets to listen on."""
