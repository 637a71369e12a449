"""Base classes of the options that a plugin declares: frozen, unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from pydantic_core import ErrorDetails, PydanticCustomError

from pe_ray.plugins.spelling import closest, did_you_mean
from pe_ray.values import DistanceMetric, Framing, ImageShape, Price

if TYPE_CHECKING:
    from pe_ray.files.image_tables import ImageTable
    from pe_ray.plugins.private_sums import PrivateSums
    from pe_ray.plugins.stand_ins import Rehearsal

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

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        """Return what stands in for these options in a rehearsal: themselves by default.

        Networks are tiny random ones of the same family, saved below `rehearsal.folder`. Options
        of plugins in these options are asked after them.
        """
        return self

    @model_serializer(mode="wrap")
    def _serialize(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        left_out = self.unbound if info.context == BOUND else ()
        return {name: value for name, value in values.items() if name not in left_out}

    @model_validator(mode="wrap")
    @classmethod
    def _explain_keys(cls, tree: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Say more of keys that are unknown, missing (unless misspelt) or empty."""
        try:
            return handler(tree)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            unknown = {_own_key(f) for f in faults if f["type"] == "extra_forbidden"} - {None}
            misspelt = {closest(str(name), cls.model_fields) for name in unknown}
            told = [f for f in faults if f["type"] != "missing" or _own_key(f) not in misspelt]
            raise as_validation_error(
                cls.__name__, [(f["loc"], f["type"], cls._explain(f), f["input"]) for f in told]
            ) from None

    @classmethod
    def _explain(cls, fault: ErrorDetails) -> str:
        name, kind = _own_key(fault), fault["type"]
        if name is not None and kind == "extra_forbidden":
            return f"there is no such key{did_you_mean(str(name), cls.model_fields)}"
        is_empty = fault["input"] is None and kind != "value_error"
        if name not in cls.model_fields or not (is_empty or kind == "missing"):
            return fault["msg"]
        field = cls.model_fields[str(name)]
        what = "is missing" if kind == "missing" else "is empty"
        fix = "give it" if field.is_required() else "give it, or leave it out"
        meaning = " ".join((field.description or "").split()).rstrip(".")
        return f"{what}; {fix}{f' ({meaning})' if meaning else ''}"


def _own_key(fault: ErrorDetails) -> int | str | None:
    """Return the key that a fault of a model is about; None: it is about something below."""
    return fault["loc"][0] if len(fault["loc"]) == 1 else None


def as_validation_error(
    title: str, faults: Iterable[tuple[tuple[int | str, ...], str, str, Any]]
) -> ValidationError:
    """Return the error of several faults: each its place, type, message and the value there."""
    return ValidationError.from_exception_data(
        title,
        [
            {"type": PydanticCustomError(kind, message), "loc": place, "input": value}
            for place, kind, message, value in faults
        ],
    )


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
    def call_prices(self) -> Mapping[str, Price]:
        """Cost of calls and the caps on them, by the field that holds the caps; none: free."""
        return {}

    def find_warnings(self) -> Sequence[str]:
        """Return what `plan` should warn of. A service is asked at most what is free."""
        return ()

    @property
    def shown_data(self) -> str | None:
        """Place of the images that samples show, whole or in part. It must not be private.data."""
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

    @property
    def numbers_draws(self) -> bool:
        """Whether `random` gets the number of each draw for a seed, and so can avoid repeats."""
        return False

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
