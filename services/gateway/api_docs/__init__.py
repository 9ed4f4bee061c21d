"""OpenAPI, AsyncAPI and their HTML page, made from the code."""
