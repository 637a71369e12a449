"""Generator on any text-to-image model that diffusers loads: Stable Diffusion, FLUX, Qwen, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pe_ray.components.generators.caption_options import CaptionedOptions
from pe_ray.components.generators.captions import Captions
from pe_ray.components.generators.generator_checks import EDITS, pick_edit, refuse_overflow
from pe_ray.components.generators.pipeline_loading import (
    PipelineOptions,
    Task,
    load_own_pipeline,
    load_pipeline,
    save_tiny_pipeline,
    share_as,
)
from pe_ray.config.places import PathText
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Options, Rows
from pe_ray.plugins.seeds import Seeds, uniforms
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import ImageShape

_REHEARSED_SIDE, _REHEARSED_STEPS = 64, 2  # pixels of the longer side
Side = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]


class RandomSettings(Options):
    """How a pipeline denoises."""

    guidance: float | None = Field(default=None, ge=0, le=100)
    """Classifier-free guidance scale; 0 is none (turbo models). Default: the pipeline's own, 7.5
    for Stable Diffusion 1 and 2, 5 for XL."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Denoising steps from pure noise."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(update={"steps": min(self.steps, _REHEARSED_STEPS)})


class VarySettings(RandomSettings):
    """How variations are made."""

    unbound: ClassVar[frozenset[str]] = frozenset({"pipeline_class"})

    method: Literal["strength", "edit", "inpaint"] = "strength"
    """strength: the last `steps` * degree of `steps`, from the image with as much noise. (Latent
    consistency models do all `steps`, from as little noise.) edit: an instruction, picked by the
    degree, for edit models, which take no strength. inpaint: draw a rectangle anew, at a random
    place, whose share of the image is the degree."""
    edits: tuple[str, ...] = Field(default=EDITS, min_length=1)
    """`edit` only: instructions from the weakest to the strongest change, {prompt} standing for the
    label's prompt. Of k instructions, a degree picks number floor(k degree), 1 the last."""
    checkpoint: PathText | None = None
    """Another checkpoint for variations; both are then held in memory."""
    revision: str | None = None
    """As the generator's `revision`, for the checkpoint given here."""
    pipeline_class: str | None = None
    """As the generator's `pipeline_class`, for the checkpoint given here."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        # Degrees count steps, but not for edits, which are made one by one.
        small = self if self.method == "strength" else super().rehearsal(rehearsal)
        if self.checkpoint is None:
            return small
        given = (self.checkpoint, self.revision, self.pipeline_class)
        tiny = save_tiny_pipeline("generator.vary", *given, rehearsal)
        return small.model_copy(update={"checkpoint": tiny, "revision": None})

    @model_validator(mode="after")
    def _check_revision(self) -> Self:
        if self.revision and not self.checkpoint:
            raise ValueError("revision: needs a checkpoint of its own next to it")
        return self


class DiffusersOptions(CaptionedOptions, PipelineOptions):
    """Options of Diffusers."""

    image_size: Side | tuple[Side, Side] = 512
    """Height and width in pixels, or one number for both; best the size that the checkpoint was
    trained for. Some models need multiples of 16 or 32."""
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    """Tokens that a prompt is cut or padded to, for models whose pipeline takes the number
    (`max_sequence_length`). Default: the pipeline's own. FLUX.1 [schnell] needs 256 or less."""
    random: RandomSettings = RandomSettings()
    vary: VarySettings = VarySettings()

    @property
    def image_shape(self) -> ImageShape:
        size = self.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return ImageShape(height=height, width=width, channels=3)

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        shape, small = self.image_shape, super().rehearsal(rehearsal)
        scale = _REHEARSED_SIDE / max(shape.height, shape.width)
        sides = [max(32, 32 * round(side * scale / 32)) for side in (shape.height, shape.width)]
        return small.model_copy(update={"image_size": tuple(sides)})

    def check_degree(self, degree: float) -> None:
        if not 0 < degree <= 1:
            raise ValueError(f"degree {degree:g}: this generator needs one above 0, at most 1")
        if self.redraws:
            return
        if self.vary.method == "strength" and int(self.vary.steps * degree) < 1:
            raise ValueError(
                f"degree {degree:g} does no step of generator.vary.steps = {self.vary.steps}"
            )


class Diffusers:
    """Text to image for random draws; image to image, edits or inpainting for variations.

    Each row has a random generator of its own, on the CPU, for all of its noise. So a row's image
    depends on its batch and device by rounding only (tested on a CPU in fp32: at most 1 of 255
    levels).
    """

    Options: ClassVar[type[GeneratorOptions]] = DiffusersOptions

    def __init__(self, options: DiffusersOptions, label_names: Sequence[str]) -> None:
        from pe_ray.components.generators.pipeline_calls import check_prompts, check_size

        self._options = options
        self._random = load_pipeline("Text2Image", options)
        self._vary = self._random if options.redraws else self._load_variations()
        self._captions = Captions(options, label_names, self._reads)
        initial = [text for texts in self._captions.initial for text in texts]
        for pipeline, prompts in self._list_prompts(initial):
            check_size(pipeline, options.image_shape.height, options.image_shape.width)
            check_prompts(pipeline, prompts, options.max_tokens)

    def _load_variations(self) -> Any:
        options, own = self._options, self._options.vary
        task: Task = "Inpainting" if own.method == "inpaint" else "Image2Image"
        same = (options.checkpoint, options.revision)
        if own.checkpoint is None or (own.checkpoint, own.revision) == same:
            pipeline = share_as(task, self._random, options.placement)
        else:
            pipeline = load_own_pipeline(task, options, own.checkpoint, own.revision)
        _check_method(pipeline, own.method)
        return pipeline

    def _list_prompts(self, texts: Sequence[str]) -> list[tuple[Any, Sequence[str]]]:
        """Return each pipeline, and what it is asked where images are made from these texts."""
        own = self._options.vary
        if self._options.redraws or own.method != "edit":
            return [(self._random, texts), (self._vary, texts)]
        edits = [edit.replace("{prompt}", text) for text in texts for edit in own.edits]
        return [(self._random, texts), (self._vary, edits)]

    def _reads(self, text: str) -> bool:
        """Tell whether the pipelines read all of a text."""
        from pe_ray.components.generators.pipeline_calls import count_tokens

        for pipeline, prompts in self._list_prompts([text]):
            for prompt in prompts:
                counted = count_tokens(pipeline, prompt, self._options.max_tokens)
                if counted is None or counted[0] > counted[1]:
                    return False
        return True

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Make images from text and each row's own noise."""
        prompts = self._captions.draw(labels, seeds)
        return self._draw(prompts, seeds)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Make one variation of each row by `vary.method`, or from a paraphrase of its caption."""
        prompts = self._captions.vary(rows, degree, seeds)
        if self._options.redraws:
            return self._draw(prompts, seeds)
        make = {
            "strength": self._vary_by_strength,
            "edit": self._vary_by_edit,
            "inpaint": self._vary_by_inpainting,
        }
        images = make[self._options.vary.method](rows["image"], prompts, degree, seeds)
        return self._captions.add_to({"image": images}, prompts)

    def _draw(self, prompts: list[str], seeds: Seeds) -> Rows:
        images = self._call(self._random, self._options.random, prompts, seeds)
        return self._captions.add_to({"image": images}, prompts)

    def _vary_by_strength(
        self, images: NDArray[np.uint8], prompts: list[str], degree: float, seeds: Seeds
    ) -> NDArray[np.uint8]:
        """Put noise on each row's latents, then do the last `degree` of the steps."""
        pipeline, settings = self._vary, self._options.vary
        if type(pipeline).__name__.startswith("LatentConsistencyModel"):
            own = pipeline.scheduler.config.original_inference_steps
            if int(own * degree) < settings.steps:
                raise InputError(
                    f"schedule.degrees: {degree:g} leaves this consistency model "
                    f"{int(own * degree)} of its {own} steps to pick vary.steps = {settings.steps} "
                    "from; give fewer steps"
                )
        given = {"image": _to_pixels(images), "strength": degree}
        return self._call(pipeline, settings, prompts, seeds, **given)

    def _vary_by_edit(
        self, images: NDArray[np.uint8], prompts: list[str], degree: float, seeds: Seeds
    ) -> NDArray[np.uint8]:
        """Give each row's image and an instruction to the model, one row at a time.

        Edit models show all images of a call to every row of it.
        """
        from PIL import Image

        settings = self._options.vary
        edit = pick_edit(settings.edits, degree)
        made = [
            self._call(
                self._vary,
                settings,
                [edit.replace("{prompt}", prompts[row])],
                seeds[row : row + 1],
                image=Image.fromarray(images[row]),
            )
            for row in range(len(seeds))
        ]
        return np.concatenate(made)

    def _vary_by_inpainting(
        self, images: NDArray[np.uint8], prompts: list[str], degree: float, seeds: Seeds
    ) -> NDArray[np.uint8]:
        """Draw a rectangle of each image anew and keep the rest to the last bit."""
        masks = _draw_masks(images.shape[1], images.shape[2], degree, seeds)
        made = self._call(
            self._vary,
            self._options.vary,
            prompts,
            seeds,
            image=_to_pixels(images),
            mask_image=_to_pixels(255 * masks.astype(np.uint8)),
            strength=1.0,
        )
        return np.where(masks, made, images)

    def _call(
        self,
        pipeline: Any,
        settings: RandomSettings,
        prompts: list[str],
        seeds: Seeds,
        **given: Any,
    ) -> NDArray[np.uint8]:
        from pe_ray.components.generators.pipeline_calls import (
            fixed_arguments,
            guidance_arguments,
            make_generators,
        )
        from pe_ray.components.inference import multiply_in

        shape = self._options.image_shape
        try:
            with multiply_in(self._options.precision):
                images = pipeline(
                    prompt=list(prompts),  # some pipelines change the list
                    num_inference_steps=settings.steps,
                    generator=make_generators(seeds),
                    output_type="np",
                    **guidance_arguments(pipeline, settings.guidance, len(prompts)),
                    **fixed_arguments(
                        pipeline, shape.height, shape.width, self._options.max_tokens
                    ),
                    **given,
                ).images
        except ValueError as error:  # of diffusers' own checks
            reason = " ".join(str(error).split())
            raise InputError(f"generator: {type(pipeline).__name__} refuses: {reason}") from error
        made = np.asarray(images)
        wanted = (len(prompts), shape.height, shape.width, 3)
        if made.shape != wanted:
            raise InputError(
                f"generator.image_size: {type(pipeline).__name__} made images of shape "
                f"{made.shape[1:]} where {wanted[1:]} was asked; give a size that it makes"
            )
        refuse_overflow(made, self._options.precision)
        return np.rint(made * 255.0).astype(np.uint8)


def _check_method(pipeline: Any, method: str) -> None:
    """Raise InputError where the pipeline doesn't offer this way to vary."""
    from pe_ray.components.generators.pipeline_calls import takes

    name = type(pipeline).__name__
    if method == "strength" and not takes(pipeline, "strength"):
        raise InputError(f"generator.vary.method: {name} takes no strength; give method: edit")
    if method == "edit" and takes(pipeline, "strength"):
        raise InputError(
            f"generator.vary.method: {name} is no edit model, as it takes a strength; give "
            "method: strength"
        )


def _draw_masks(height: int, width: int, share: float, seeds: Seeds) -> NDArray[np.bool_]:
    """Return masks, [n, height, width, 1]: a rectangle of this share of the image, at random."""
    tall, wide = (max(1, round(side * share**0.5)) for side in (height, width))
    places = uniforms(seeds, 2)
    masks = np.zeros((len(seeds), height, width, 1), dtype=np.bool_)
    for mask, (down, right) in zip(masks, places, strict=True):
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        mask[top : top + tall, left : left + wide] = True
    return masks


def _to_pixels(images: NDArray[np.uint8]) -> Any:
    """Return images as pipelines take them: float in [0, 1], [n, channels, height, width]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255.0
