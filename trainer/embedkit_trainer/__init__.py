"""The trainer: room for training recipes; nothing here yet."""
