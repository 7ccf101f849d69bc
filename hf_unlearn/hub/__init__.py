"""What goes to the Hub: the upload, the unlearning record, the model card."""
