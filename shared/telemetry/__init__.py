"""What a process tells its operators: logs, and traces if somebody collects them."""
