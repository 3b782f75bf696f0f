"""The web demo for trained models."""
