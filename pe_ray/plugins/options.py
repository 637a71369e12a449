"""Base classes of the options that a plugin declares: frozen, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from pe_ray.plugins.spelling import did_you_mean
from pe_ray.values import DistanceMetric, Framing, ImageShape, Price

if TYPE_CHECKING:
    from pe_ray.files.image_tables import ImageTable
    from pe_ray.plugins.private_sums import PrivateSums

BOUND = "bound"
"""Context for `model_dump` that leaves out the fields named in `unbound`."""


class Options(BaseModel):
    """Base of a plugin's options. The string under a field says what the field means.

    Numbers must be finite, except in fields with `allow_inf_nan=True`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )
    unbound: ClassVar[frozenset[str]] = frozenset()
    """Fields that change no output. A run may continue with other values."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Optional dependencies that the plugin imports. A run is refused without them."""
    least_rows: ClassVar[int] = 1
    """Rows that are worth a file and a task of their own: many where a row takes microseconds."""

    @property
    def local_paths(self) -> Mapping[str, str]:
        """Option -> path of a file or folder that must be on every machine that uses the plugin."""
        return {}

    @model_serializer(mode="wrap")
    def _serialize(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        left_out = self.unbound if info.context == BOUND else ()
        return {name: value for name, value in values.items() if name not in left_out}

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown_keys(cls, tree: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report an unknown key before other faults: a missing one may be that one, misspelt."""
        try:
            return handler(tree)
        except ValidationError as error:
            for fault in error.errors():
                if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
                    name = str(fault["loc"][0])
                    hint = did_you_mean(name, cls.model_fields)
                    raise ValueError(f"{name}: there is no such key{hint}") from None
            raise


class MetricOptions(Options):
    """Base of a metric's options."""

    @property
    def least_labels(self) -> int:
        """Labels that a run needs for this metric; 0: it takes no notice of them."""
        return 0

    @property
    def least_images(self) -> int:
        """Images that the metric needs of either set."""
        return 1


class GeneratorOptions(Options):
    """Base of a generator's options: also says what its rows look like."""

    @property
    def image_shape(self) -> ImageShape:
        """Shape of every image that the generator makes."""
        raise NotImplementedError

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """Own columns in addition to the image: name -> (numpy dtype, values per row)."""
        return {}

    @property
    def call_price(self) -> Price | None:
        """Cost of calls and the caps on them; None: calls are free."""
        return None

    def find_warnings(self) -> Sequence[str]:
        """Return what `plan` should warn of. A service is asked at most what is free."""
        return ()

    @property
    def shown_data(self) -> str | None:
        """Folder or file whose images appear in samples unchanged. It must not be private.data."""
        return None

    @property
    def framing(self) -> Framing | None:
        """How stored public images are brought to that shape, as private ones are; None: none."""
        return None

    @property
    def public_table(self) -> ImageTable | None:
        """Public images that the generator reads, brought to its `framing`; None: none."""
        return None

    @property
    def parts(self) -> Sequence[Any]:
        """Plugins of the generators that it is made of; none: of itself."""
        return ()

    def at(self, iteration: int) -> GeneratorOptions:
        """Return the options for making S_iteration and the lookahead of its votes."""
        return self

    def private_sums(self, num_labels: int) -> PrivateSums | None:
        """Return what is to be released before S_0 for the generator to draw from; None: nothing.

        ValueError names the key where a run with so many labels can't have it.
        """
        return None

    def with_sums(self, file: str) -> GeneratorOptions:
        """Return the options with the file that the released sums were written to."""
        return self

    def check_degree(self, degree: float) -> None:
        """Raise ValueError where `vary` can't run at `degree`; called before a run starts."""


class EmbedderOptions(Options):
    """Base of an embedder's options."""

    @property
    def learnt(self) -> bool:
        """Whether each run learns its own, so that embeddings of two runs can't be compared."""
        return False

    def dim(self, shape: ImageShape) -> int:
        """Return the length of the embedding of an image of `shape`."""
        raise NotImplementedError

    def check_learning(
        self, *, num_labels: int, shape: ImageShape, metric: DistanceMetric, paid: bool
    ) -> None:
        """Raise ValueError, naming the key, where a run like this can't learn it.

        metric: of the votes; paid: whether calls of the generator cost money.
        """
