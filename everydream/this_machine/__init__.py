"""What the machine is on which a command runs: its device, its base models, and what is wrong."""
