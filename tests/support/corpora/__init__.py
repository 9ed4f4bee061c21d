"""What strangers send: things that must be refused, by kind."""
