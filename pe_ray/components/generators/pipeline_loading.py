"""Load diffusers' pipelines, from a folder, the hub or a single file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pe_ray.components.weights import Precision, load_network, loading_errors
from pe_ray.config.places import LocalFile, PathText
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Options
from pe_ray.plugins.stand_ins import Rehearsal

logger = logging.getLogger(__name__)

Task = Literal["Text2Image", "Image2Image", "Inpainting"]

# They draw the noise of the whole batch from one stream, even if each row has a generator.
_BATCH_NOISE = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}
_UNCHECKED: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
_WHOLE = ("first_stage_model.", "vae.")  # keys of files with a whole pipeline, not a denoiser alone


class LoraFile(Options):
    """Low-rank weights that are added to the checkpoint's."""

    modules: ClassVar[tuple[str, ...]] = ("peft",)

    file: LocalFile
    """A .safetensors file, the same on every machine."""
    scale: float = 1.0
    """How much of it is added."""


class Placement(Options):
    """How the networks are held in memory and computed.

    All change pixels by rounding, `quantize` and `vae_tiling` by more.
    """

    quantize: Literal["bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8"] | None = None
    """Hold the weights of the denoiser and the text encoders in fewer bits, by the package of that
    name; default: as the checkpoint holds them."""
    offload: Literal["model", "layers"] | None = None
    """Keep in the GPU's memory only the network, or the layer, that computes."""
    device_map: Literal["balanced"] | None = None
    """Spread each network over all GPUs of the worker (`resources.gpus_per_worker`)."""
    attention: str | None = None
    """diffusers' name of an attention backend, as native or flash; default: diffusers' choice."""
    vae_tiling: bool = False
    """Decode large images in tiles. Seams may show."""
    vae_slicing: bool = False
    """Decode the images of a batch one by one."""


class PipelineOptions(GeneratorOptions):
    """What a pipeline is loaded with."""

    unbound: ClassVar[frozenset[str]] = frozenset({"pipeline_class"})
    modules: ClassVar[tuple[str, ...]] = ("accelerate", "diffusers", "torch", "transformers")

    checkpoint: PathText
    """Folder in diffusers' format (the same on every machine), or the id of one on the Hugging
    Face hub, downloaded into its cache on first use. Weights are read from safetensors only and no
    code that comes with a checkpoint is run."""
    revision: str | None = None
    """Commit, tag or branch on the hub; only a commit can't change later."""
    pipeline_class: str | None = None
    """diffusers' class that the checkpoint's model_index.json names. Only a rehearsal reads it,
    where it can't see the checkpoint."""
    weights: LocalFile | None = None
    """A single .safetensors file to read in place of the checkpoint's weights: the denoiser alone,
    or everything if the file holds a VAE as well. The checkpoint still gives the configurations."""
    lora: tuple[LoraFile, ...] = ()
    """LoRA files for this checkpoint, added up."""
    precision: Precision = "fp32"
    """Of weights and activations."""
    compile: bool = False
    """Compile the networks that denoise: a minute or more at the start, faster calls after."""
    placement: Placement = Placement()

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        held = {"quantize": None, "offload": None, "device_map": None}  # a GPU's
        return self.model_copy(
            update={
                "checkpoint": save_tiny_pipeline(
                    "generator", self.checkpoint, self.revision, self.pipeline_class, rehearsal
                ),
                "revision": None,
                "weights": None,
                "lora": (),
                "compile": False,
                "placement": self.placement.model_copy(update=held),
            }
        )


def save_tiny_pipeline(
    field: str, name: str, revision: str | None, given: str | None, rehearsal: Rehearsal
) -> str:
    """Write a tiny pipeline of the class that a checkpoint has, found without a network.

    given: the class where neither the folder `name` nor the hub's cache tells it.
    """
    from huggingface_hub import try_to_load_from_cache

    from pe_ray.components.generators.tiny_pipelines import PIPELINES, save_pipeline

    index: Any = Path(name) / "model_index.json"
    if not index.is_file() and not Path(name).is_absolute():
        with suppress(ValueError):  # it has not the form of a hub's name
            index = try_to_load_from_cache(name, "model_index.json", revision=revision)
    found = given
    if isinstance(index, str | Path) and Path(index).is_file():
        found = json.loads(Path(index).read_text())["_class_name"]
    if found not in PIPELINES:
        raise InputError(
            f"{field}.pipeline_class: a rehearsal of {name} needs one of {', '.join(PIPELINES)}; "
            f"this is {found}"
        )
    return save_pipeline(rehearsal.make_folder("pipeline"), found)


def load_pipeline(task: Task, options: PipelineOptions) -> Any:
    """Return a diffusers pipeline on `inference.pick_device()`.

    Weights are read from safetensors only, and no code of the checkpoint is run. A safety checker
    is not loaded: it would put black images in place of some.
    """
    return _load(task, "generator.checkpoint", options, options.checkpoint, options.revision)


def load_own_pipeline(
    task: Task, options: PipelineOptions, checkpoint: str, revision: str | None
) -> Any:
    """Return the pipeline of another checkpoint, for variations alone."""
    bare = options.model_copy(update={"weights": None, "lora": ()})
    return _load(task, "generator.vary.checkpoint", bare, checkpoint, revision)


def share_as(task: Task, pipeline: Any, placement: Placement) -> Any:
    """Return a pipeline for `task` on the weights of `pipeline`, in memory once."""
    import diffusers

    kind = _find_class(type(pipeline).__name__, task, "generator.checkpoint")
    if isinstance(pipeline, kind):
        return pipeline
    shared = getattr(diffusers, f"AutoPipelineFor{task}").from_pipe(pipeline)
    _silence(shared)
    if placement.offload:
        _place(shared, placement)  # hooks on the networks know their pipeline
    return shared


def _load(
    task: Task, option: str, options: PipelineOptions, name: str, revision: str | None
) -> Any:
    import diffusers
    import transformers

    from pe_ray.components.generators.pipeline_calls import find_denoiser
    from pe_ray.components.inference import DTYPES

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with loading_errors(option, name):
        index = diffusers.DiffusionPipeline.load_config(name, revision=revision)
        kind = _find_class(index.get("_class_name"), task, option, name)
        _check_parts(index, option, name)
        folder = name
        if not Path(name).is_dir():
            download = diffusers.DiffusionPipeline.download
            folder = str(download(name, revision=revision, use_safetensors=True, **_UNCHECKED))
    _check_placement(options.placement)
    dtype, weights = DTYPES[options.precision], options.weights
    given = {"torch_dtype": dtype, "local_files_only": True, **_UNCHECKED}
    if weights is not None and _holds_all(weights):
        with loading_errors("generator.weights", weights):
            pipeline = kind.from_single_file(weights, config=folder, **given)
    else:
        networks = _load_networks(index, option, folder, options)
        with loading_errors(option, name):
            pipeline = kind.from_pretrained(folder, **given, **networks)
    if pipeline.scheduler.config.get("stochastic_sampling"):  # pipelines give it no generators
        raise InputError(
            f"{option}: {name} has a scheduler with stochastic_sampling, whose noise no row's seed "
            "decides; set it to false in scheduler/scheduler_config.json"
        )
    for number, lora in enumerate(options.lora):
        _add_lora(pipeline, lora, f"lora{number}")
    if options.lora:
        names = [f"lora{number}" for number in range(len(options.lora))]
        pipeline.set_adapters(names, [lora.scale for lora in options.lora])
    _silence(pipeline)
    _place(pipeline, options.placement)
    logger.info("%s: %s on %s in %s", option, name, pipeline.device, options.precision)
    if options.compile:
        find_denoiser(pipeline).compile()
    return pipeline


def _find_class(written: Any, task: Task, option: str, name: str = "it") -> Any:
    """Return the class for `task` of the family that the pipeline class `written` belongs to."""
    from diffusers.pipelines import auto_pipeline

    tasks = {
        "Text2Image": auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "Image2Image": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "Inpainting": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    }
    families = {kind.__name__: family for kinds in tasks.values() for family, kind in kinds.items()}
    where = f"{option}: {name} is"
    if written not in families:
        raise InputError(
            f"{where} a {written}, which diffusers' AutoPipeline for images doesn't know; give "
            "another checkpoint, or update diffusers"
        )
    if families[written] not in tasks[task]:
        fix = {
            "Text2Image": "give a checkpoint that draws from text, and this one as vary.checkpoint",
            "Image2Image": "give vary.checkpoint, or vary.method: inpaint",
            "Inpainting": "give vary.checkpoint, or another vary.method",
        }
        raise InputError(f"{where} a {written}, and diffusers has no {task} for it; {fix[task]}")
    return tasks[task][families[written]]


def _check_parts(index: dict[str, Any], option: str, name: str) -> None:
    """Refuse a pipeline with code of its own, or that mixes rows' noise."""
    import diffusers

    for part, (library, kind) in _parts(index).items():
        # Parts that only one pipeline has lie in its folder of diffusers.
        if library not in ("diffusers", "transformers") and not hasattr(
            diffusers.pipelines, library
        ):
            raise InputError(
                f"{option}: {name} has a {part} made by code of its own ({library}), which is "
                "never run; give another checkpoint"
            )
        if kind in _BATCH_NOISE:
            raise InputError(
                f"{option}: {name} has a {kind}, which draws noise for a whole batch, so a row's "
                "image would depend on its batch; save it with another scheduler"
            )


def _check_placement(placement: Placement) -> None:
    """Refuse what this machine can't do."""
    from pe_ray.components.inference import pick_device

    if placement.quantize:
        package = placement.quantize.partition("_")[0]
        if find_spec(package) is None:
            raise InputError(
                f"generator.placement.quantize: needs {package}, not installed here; "
                f"pip install {package}"
            )
    for option in ("offload", "device_map"):
        if getattr(placement, option) and pick_device().type != "cuda":
            raise InputError(f"generator.placement.{option}: this process has no GPU; leave it out")


def _parts(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the pipeline's parts by name: their library and class there."""
    return {
        part: (value[0], value[1])
        for part, value in index.items()
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] is not None
    }


def _load_networks(
    index: dict[str, Any], option: str, folder: str, options: PipelineOptions
) -> dict[str, Any]:
    """Return the pipeline's networks by name, each with all its weights.

    A pipeline that loads them itself fills missing weights with random numbers.
    """
    import diffusers
    import torch
    import transformers

    from pe_ray.components.inference import DTYPES

    dtype, placement = DTYPES[options.precision], options.placement
    networks = {}
    for part, (library, kind) in _parts(index).items():
        module = {"diffusers": diffusers, "transformers": transformers}.get(library)
        found = getattr(module, kind, None)
        if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
            continue
        network: Any = found
        given: dict[str, Any] = {"dtype" if library == "transformers" else "torch_dtype": dtype}
        if options.weights is not None and part in ("transformer", "unet"):
            with loading_errors("generator.weights", options.weights):
                networks[part] = network.from_single_file(
                    options.weights,
                    config=folder,
                    subfolder=part,
                    local_files_only=True,
                    **given,
                )
            continue
        if placement.device_map:
            given["device_map"] = placement.device_map
        if placement.quantize and part.startswith(("transformer", "unet", "text_encoder")):
            given["quantization_config"] = _quantization(module, placement.quantize, dtype)
        networks[part] = load_network(
            network, option, folder, part, use_safetensors=True, local_files_only=True, **given
        )
    return networks


def _quantization(library: Any, quantize: str, dtype: Any) -> Any:
    """Return the configuration by which `library`, diffusers or transformers, quantises."""
    if quantize == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return library.TorchAoConfig(Int8WeightOnlyConfig())
    if quantize == "bitsandbytes_8bit":
        return library.BitsAndBytesConfig(load_in_8bit=True)
    return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def _holds_all(file: str) -> bool:
    """Return whether a file holds a whole pipeline rather than a denoiser."""
    from safetensors import safe_open

    with loading_errors("generator.weights", file), safe_open(file, "pt") as opened:
        return any(key.startswith(_WHOLE) for key in opened.keys())  # noqa: SIM118


def _add_lora(pipeline: Any, lora: LoraFile, name: str) -> None:
    """Add a LoRA to the pipeline's networks, all of it or an InputError."""
    option = "generator.lora"
    if not hasattr(pipeline, "load_lora_weights"):
        raise InputError(f"{option}: {type(pipeline).__name__} takes none; leave it out")
    file = Path(lora.file)
    with loading_errors(option, lora.file):
        pipeline.load_lora_weights(
            str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True
        )
        placed = pipeline.get_list_adapters()
    if not any(name in names for names in placed.values()):
        raise InputError(f"{option}: {lora.file} fits no network of a {type(pipeline).__name__}")


def _silence(pipeline: Any) -> None:
    """Turn off progress bars, and SDXL's watermark, which depends on what is installed."""
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "watermark"):
        pipeline.watermark = None


def _place(pipeline: Any, placement: Placement) -> None:
    """Move the networks to the device and set how they are computed."""
    from pe_ray.components.generators.pipeline_calls import find_denoiser
    from pe_ray.components.inference import pick_device

    if placement.offload == "model":
        pipeline.enable_model_cpu_offload()
    elif placement.offload == "layers":
        pipeline.enable_sequential_cpu_offload()
    elif not placement.device_map:
        pipeline.to(pick_device())
    asked: dict[str, Callable[[], Any]] = {
        "attention": lambda: find_denoiser(pipeline).set_attention_backend(placement.attention),
        "vae_tiling": lambda: pipeline.vae.enable_tiling(),
        "vae_slicing": lambda: pipeline.vae.enable_slicing(),
    }
    failures = (AttributeError, ImportError, NotImplementedError, RuntimeError, ValueError)
    for option, apply in asked.items():
        if getattr(placement, option):
            try:
                apply()
            except failures as error:
                reason = " ".join(str(error).split())
                raise InputError(f"generator.placement.{option}: {reason}") from error
