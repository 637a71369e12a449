"""What a unit can add to each kind of release."""

from __future__ import annotations

from pe_ray.config import Config


def votes_limit(config: Config) -> int:
    """Most bins that one unit's votes reach: the square of the votes' L2 sensitivity."""
    by_user = config.privacy.unit == "user"
    return config.votes.max_votes_per_user if by_user else config.votes.neighbors


def labels_limit(config: Config) -> int:
    """Most labels that one unit counts for."""
    return 1 if config.privacy.unit == "record" else votes_limit(config)
