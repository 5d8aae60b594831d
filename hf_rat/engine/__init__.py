"""Who runs passes and back-propagates: a regularizer at work on a model. Knows torch and accelerate."""
