"""Attention beside transformers' own: over packed rows, and in float32 where bfloat16 is slow."""
