"""Rounds: what the coordinator and a bank say to each other, decide, keep and train."""
