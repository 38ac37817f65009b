"""How the tiny CLIP of the demo was made."""
