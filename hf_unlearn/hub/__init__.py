"""The Hub: uploading a model, its unlearning record and its model card."""
