"""A trained model in hand: load it, predict, draw, count."""
