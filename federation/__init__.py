"""Banks that train one adapter together. Read rounds/coordinator.py first, then rounds/bank.py."""
