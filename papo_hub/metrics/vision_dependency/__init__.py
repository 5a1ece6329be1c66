"""How much accuracy depends on seeing the image."""
