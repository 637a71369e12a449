"""The privacy claim, attacked from outside: what a run releases about canaries, and how much."""
