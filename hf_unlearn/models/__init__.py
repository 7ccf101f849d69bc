"""Models: loading, adapters, the frozen original model, eval mode."""
