"""Hard negatives: candidates from a search, rules, judges."""
