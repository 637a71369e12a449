"""Base classes of the options that a plugin declares: frozen, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from pe_ray.values import ImageShape, Price


class Options(BaseModel):
    """Base of a plugin's options: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: ClassVar[tuple[str, ...]] = ()
    """Optional dependencies that the plugin imports; a run is refused without them."""


class GeneratorOptions(Options):
    """Base of a generator's options: also says what its rows look like."""

    @property
    def image_shape(self) -> ImageShape:
        """Shape of every image this generator makes."""
        raise NotImplementedError

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """Own columns beside the image: name -> (numpy dtype, values per row)."""
        return {}

    @property
    def unbound(self) -> frozenset[str]:
        """Options that, like `resources`, change no output: a run may go on with other values."""
        return frozenset()

    @property
    def call_price(self) -> Price | None:
        """What calls cost and the caps on them; None: nothing. What costs is never only timed."""
        return None

    @property
    def shown_data(self) -> str | None:
        """Where images are that samples show as they are; private data are refused there."""
        return None

    def check_degree(self, degree: float) -> None:
        """Raise ValueError where `vary` can't run at `degree`; called before a run starts."""


class EmbedderOptions(Options):
    """Base of an embedder's options."""

    @property
    def learnt(self) -> bool:
        """Whether a run learns it, so that its embeddings mean nothing elsewhere."""
        return False

    def dim(self, shape: ImageShape) -> int:
        """Length of the embedding of an image of `shape`."""
        raise NotImplementedError
