"""HTTP for every endpoint: the application, routing, authentication, authorization, rate limits."""
