"""Corpora and indexes: `Index` is built once from documents and searched under any task."""
