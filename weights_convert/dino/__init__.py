"""DINO's image towers: their key maps, and from files to towers and back."""
