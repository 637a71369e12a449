"""Generator on latent diffusion: Stable Diffusion 1.x, 2.x, XL, their turbo and LCM variants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pe_ray.components.generators.diffusers_pipelines import (
    load_pipeline,
    share_as_image_to_image,
)
from pe_ray.components.generators.generator_checks import fill_prompts, refuse_overflow
from pe_ray.components.weights import Precision
from pe_ray.config.places import PathText
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Options, Rows
from pe_ray.plugins.seeds import Seeds, normals
from pe_ray.values import ImageShape


class RandomSettings(Options):
    """How a pipeline denoises."""

    guidance: float = Field(default=7.5, ge=0, le=100)
    """Classifier-free guidance scale; at most 1 is none (turbo models: 0)."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Denoising steps from pure noise."""


class VarySettings(RandomSettings):
    """How variations are made: image to image, the last `steps` * degree (rounded down) of `steps`.

    Checkpoints of the LatentConsistencyModel pipeline do all `steps`, from as little noise.
    """

    checkpoint: PathText | None = None
    """Another checkpoint for variations; both are then held in memory."""
    revision: str | None = None
    """As the generator's `revision`, for the checkpoint given here."""

    @model_validator(mode="after")
    def _check_revision(self) -> Self:
        if self.revision and not self.checkpoint:
            raise ValueError("revision: needs a checkpoint of its own next to it")
        return self


class StableDiffusionOptions(GeneratorOptions):
    """Options of StableDiffusion."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "diffusers", "transformers")

    checkpoint: PathText
    """Folder in diffusers' format (the same on every machine), or the id of one on the Hugging
    Face hub, downloaded into its cache on first use. Weights are read from safetensors only and no
    code that comes with a checkpoint is run."""
    revision: str | None = None
    """Commit, tag or branch on the hub; only a commit can't change later."""
    prompt: str = Field(default="a photo of {label}", min_length=1)
    """Prompt of every label that `prompts` doesn't name; {label} stands for the label's name."""
    prompts: dict[str, str] = Field(default={})
    """Label name -> its prompt."""
    image_size: int = Field(default=512, ge=8, le=4096, multiple_of=8)
    """Height and width, in pixels; best the size that the checkpoint was trained for."""
    random: RandomSettings = RandomSettings()
    vary: VarySettings = VarySettings()
    precision: Precision = "fp32"
    """Of weights and activations."""
    compile: bool = False
    """Compile the networks that denoise: a minute or more at the start, faster calls after."""

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=3)

    def check_degree(self, degree: float) -> None:
        if not 0 < degree <= 1:
            raise ValueError(f"degree {degree:g}: stable_diffusion needs one above 0, at most 1")
        if int(self.vary.steps * degree) < 1:
            raise ValueError(
                f"degree {degree:g} does no step of generator.vary.steps = {self.vary.steps}"
            )


class StableDiffusion:
    """Text to image for random draws, image to image for variations, through diffusers.

    `degree` is the strength of image to image, in (0, 1]: 1 starts from pure noise and keeps the
    prompt alone. Each row's noise is drawn from its own seed, on the CPU. So a row's image depends
    on its batch and device by rounding only (tested on a CPU in fp32: at most 1 of 255 levels).
    """

    Options: ClassVar[type[GeneratorOptions]] = StableDiffusionOptions

    def __init__(self, options: StableDiffusionOptions, label_names: Sequence[str]) -> None:
        self._prompts = fill_prompts(options.prompt, options.prompts, label_names)
        self._options = options
        load = partial(load_pipeline, precision=options.precision, compiled=options.compile)
        main, own = (options.checkpoint, options.revision), options.vary
        self._random = load("Text2Image", "generator.checkpoint", *main)
        if own.checkpoint is None or (own.checkpoint, own.revision) == main:
            self._vary = share_as_image_to_image(self._random)
        else:
            option = "generator.vary.checkpoint"
            self._vary = load("Image2Image", option, own.checkpoint, own.revision)
        for pipeline in (self._random, self._vary):
            _check_prompts(pipeline, self._prompts)

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Make images from text and each row's own noise."""
        pipeline, side = self._random, self._options.image_size
        latent = side // pipeline.vae_scale_factor
        shape = (len(seeds), pipeline.unet.config.in_channels, latent, latent)
        # torch's generators keep 32 bits of a seed: of a million rows some would share their noise.
        noise = _to_tensor(normals(seeds, int(np.prod(shape[1:]))).reshape(shape))
        return self._run(
            pipeline,
            self._options.random,
            labels,
            seeds,
            latents=noise.to(pipeline.device, pipeline.unet.dtype),
            height=side,
            width=side,
        )

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
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
        pixels = _to_tensor(rows["image"].transpose(0, 3, 1, 2) / 255.0).float()
        return self._run(pipeline, settings, rows["label"], seeds, image=pixels, strength=degree)

    def _run(
        self,
        pipeline: Any,
        settings: RandomSettings,
        labels: NDArray[np.int32],
        seeds: Seeds,
        **given: Any,
    ) -> Rows:
        import torch

        images = pipeline(
            prompt=[self._prompts[label] for label in labels],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
            output_type="np",
            **given,
        ).images
        refuse_overflow(images, self._options.precision)
        return {"image": np.rint(images * 255.0).astype(np.uint8)}


def _to_tensor(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _check_prompts(pipeline: Any, prompts: Sequence[str]) -> None:
    """Refuse prompts that the pipeline would cut off or not understand, without a word."""
    tokenizers = [pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)]
    for text in prompts:
        for tokenizer in filter(None, tokenizers):
            tokens, limit = tokenizer(text).input_ids, tokenizer.model_max_length
            if len(tokens) > limit:
                raise InputError(
                    f"generator: the prompt {text!r} has {len(tokens)} tokens but the model reads "
                    f"{limit}; shorten it"
                )
            if set(tokens) <= set(tokenizer.all_special_ids):
                raise InputError(
                    f"generator: the checkpoint's tokenizer knows no word of {text!r}; its files "
                    "are missing or damaged"
                )
