"""What a process tells its operators: metrics and health, on a port of their own."""
