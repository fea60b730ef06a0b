"""Text to sound: models that say themselves how long their result is."""
