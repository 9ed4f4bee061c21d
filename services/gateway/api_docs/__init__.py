"""OpenAPI and AsyncAPI documents, made from the code, and the page that shows them."""
