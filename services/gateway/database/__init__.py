"""Jobs, keys and uploads in SQLite or PostgreSQL."""
