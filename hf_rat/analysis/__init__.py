"""What regularization did to trained models: measurements of them, side by side on the same rows."""
