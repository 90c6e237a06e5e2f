"""A federation of banks begins here: keys and certificates, requests, and the roster that all sign."""
