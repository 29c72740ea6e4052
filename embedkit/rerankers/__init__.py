"""Built-in rerankers; each is reached by its entry point, as a plug-in is."""
