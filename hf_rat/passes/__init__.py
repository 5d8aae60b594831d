"""How a model runs at a point near a batch. Knows torch only."""
