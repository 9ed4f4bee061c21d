"""What every service shares: the messages, the ports, the runtime and the rules of a job's life."""
