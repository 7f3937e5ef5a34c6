"""The client of the service: `builder` is what users hold, over a `connection` and a `pipeline` of requests."""
