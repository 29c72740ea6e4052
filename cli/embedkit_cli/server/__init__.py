"""The HTTP server of `embedkit serve`."""
