"""Loaders of public labelled sets in the layouts they are published in; `registry.load_rows` is the door."""
