"""Embedder made of several: their numbers side by side."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.config.kinds import Block, FixedEmbedderPlugin
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.values import DistanceMetric, ImageShape


class Member(Block):
    """One of the embedders."""

    embedder: FixedEmbedderPlugin
    """Any kind that is the same for every run; whitening is for all of them together."""
    share: float = Field(default=1.0, gt=0)
    """Of squared distances, relative to the others'."""


class JoinedOptions(EmbedderOptions):
    """Options of Joined."""

    members: tuple[Member, ...] = Field(min_length=1)
    """Embedders whose numbers follow each other."""

    def dim(self, shape: ImageShape) -> int:
        return sum(member.embedder.dim(shape) for member in self.members)


class Joined:
    """Several embeddings in one, where one alone misses what another sees.

    Each member is brought to norm 1 and multiplied by the square root of its share s_i / sum(s). So
    a squared distance is the weighted mean of those of the members, and the norm is 1, or less
    where a member is all zeros.
    """

    Options: ClassVar[type[EmbedderOptions]] = JoinedOptions
    metric: DistanceMetric = "l2"

    def __init__(self, options: JoinedOptions) -> None:
        shares = np.array([member.share for member in options.members], dtype=np.float64)
        self._scales = np.sqrt(shares / shares.sum()).astype(np.float32)
        self._embedders = [
            plugins.load("embedder", member.embedder.kind)(member.embedder.options)
            for member in options.members
        ]

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, float32 [n, sum of the members' dims]."""
        made = []
        for embedder, scale in zip(self._embedders, self._scales, strict=True):
            found = embedder.embed(images)
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            made.append(found * (scale / np.where(norms > 0, norms, 1)))
        return np.concatenate(made, axis=1)
