"""Built-in embedders, each found through the entry-point group `embedkit.embedders`."""
