"""Training data: rows from files, a token store made once, the order of batches, and the batches themselves."""
