"""Zone 3: synthetic samples. Sees released values only; can't import `private` or `release`."""
