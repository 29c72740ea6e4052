"""Losses, masks and the objective that puts them together."""
