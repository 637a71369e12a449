"""Zone 2: the only door. What leaves the private zone leaves it here, noised and charged."""
