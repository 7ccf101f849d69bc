"""Datasets: splitting, pairing, collating, reading, preparing, hashing."""
