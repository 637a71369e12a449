"""Options of embedders on pretrained networks: what is read of a network, and how it runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pe_ray.components.weights import Precision
from pe_ray.errors import InputError
from pe_ray.plugins import EmbedderOptions


class NetworkOptions(EmbedderOptions):
    """Options that name the same thing in every network. One that a network lacks is refused."""

    pooling: Literal["pooler", "cls", "mean", "projected"] = "pooler"
    """Which numbers of the network: its own summary of an image (`pooler`), the class token
    (`cls`), the mean of all patches (`mean`), or the image's place beside texts (`projected`)."""
    layer: int | None = Field(default=None, ge=1)
    """With `cls` or `mean`: read the output of this block, before the final norm (of the last
    block, as the network lists it). Default: the network's output."""
    precision: Precision = "fp32"
    """Of weights and activations; embeddings are float32 whatever it is."""
    compile: bool = False
    """Compile the network with torch.compile: minutes per worker, then faster."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layer is not None and self.pooling not in ("cls", "mean"):
            raise ValueError(f"layer: {self.pooling} reads the last one; give pooling cls or mean")
        return self

    def require_layer(self, network: str, num_layers: int) -> None:
        """Raise InputError where `layer` is beyond the last layer of the network of this name."""
        if self.layer is not None and self.layer > num_layers:
            raise InputError(
                f"embedder.layer: {network} has {num_layers} layers, so there is no {self.layer}; "
                "give a smaller number"
            )
