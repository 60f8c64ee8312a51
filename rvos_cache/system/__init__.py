"""What the program asks of the operating system: files that are whole or absent, locks, Ctrl-C, and the terminal."""
