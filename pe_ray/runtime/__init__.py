"""Ray and the run directory: where work runs, how its stages complete, who watches it."""
