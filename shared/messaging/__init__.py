"""Messages between the services: their types, envelope and topology."""
