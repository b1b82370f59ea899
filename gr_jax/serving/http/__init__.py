"""The HTTP server: routes, JSON, request batching, limits and the page at /."""
