"""Synthetic training data: an LLM invents tasks, then one example for each of many requests."""
