"""Models: loading, adapters, the frozen original, eval mode."""
