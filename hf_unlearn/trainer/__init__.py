"""The trainer, its arguments, and one optimizer step."""
