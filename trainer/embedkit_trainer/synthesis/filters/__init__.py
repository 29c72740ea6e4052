"""Filters of training rows: what each takes out, and why."""
