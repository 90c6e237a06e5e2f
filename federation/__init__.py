"""Banks that train one adapter together. Who takes part, with which keys: read roster.py first."""
