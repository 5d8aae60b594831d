"""The seam to the Hugging Face Trainer."""
