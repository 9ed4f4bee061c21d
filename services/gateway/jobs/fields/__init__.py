"""What a request's fields are called, and what their texts may be."""
