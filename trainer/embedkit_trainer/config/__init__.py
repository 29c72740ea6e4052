"""A run as frozen dataclasses, and the way from TOML to them."""
