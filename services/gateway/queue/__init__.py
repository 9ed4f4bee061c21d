"""What those who wait are told of the queue: their position, and who works."""
