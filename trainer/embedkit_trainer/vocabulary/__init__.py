"""Growing a tokenizer's vocabulary, and the vectors that new tokens start from."""
