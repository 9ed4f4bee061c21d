"""A job from request to result: its record, its transitions, and how clients see it."""
