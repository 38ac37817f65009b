"""Networks: each method's forward and its decoder."""
