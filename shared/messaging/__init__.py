"""What the services say to one another: messages, topology and envelope."""
