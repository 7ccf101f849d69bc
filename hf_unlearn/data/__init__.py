"""Datasets: loading, preprocessing, splitting, pairing, collating, hashing, validation."""
