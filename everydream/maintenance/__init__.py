"""What operators do to a deployment's database and store as a whole."""
