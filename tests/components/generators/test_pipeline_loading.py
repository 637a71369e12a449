"""Checkpoints that are damaged, unsafe or not to be had are refused, and the error says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_diffusion import generator

from pe_ray import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

Checkpoint = Callable[[str], str]


def _without_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def _cut(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def _reweighed(part: str, change: str) -> Callable[[Path], None]:
    """One weight of a part missing, or of another shape."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        name = sorted(name for name in weights if weights[name].ndim > 1)[3]
        if change == "missing":
            del weights[name]
        else:
            weights[name] = weights[name][:1].clone()
        save_file(weights, file, metadata={"format": "pt"})

    return damage


def _wordless(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


def _with_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["own_unet", "OwnUNet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    code = f"open({str(folder / 'ran')!r}, 'w')\n"
    for place in (folder, folder / "unet"):
        (place / "own_unet.py").write_text(code)


def _renamed(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))

    return change


def _batch_noise(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DPMSolverSDEScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json"),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer"),
        (_wordless, "tokenizer"),
        (_without_weights, r"unet.*diffusion_pytorch_model\.safetensors"),
        (_pickled, "unet.*safetensors"),
        (_cut, "unet"),
        (_with_code, "own_unet"),
        (_renamed("OwnPipeline"), "OwnPipeline"),
        (_reweighed("unet", "missing"), r"unet.*down_blocks\.0\.attentions\.0"),
        (_reweighed("vae", "missing"), r"vae.*decoder\.mid_block\.attentions\.0"),
        (_reweighed("text_encoder", "missing"), r"text_encoder.*mlp\.fc2"),
        (_reweighed("unet", "shape"), r"unet.*down_blocks\.0\.attentions\.0"),
        (_reweighed("text_encoder", "shape"), r"text_encoder.*mlp\.fc2"),
        (_batch_noise, "DPMSolverSDEScheduler"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("sd"), folder)
    damage(folder)
    with pytest.raises(InputError, match=f"^generator.*{part}"):
        generator(str(folder))
    assert not (folder / "ran").exists()


HUB = """
import sys
from pe_ray import InputError
from pe_ray.components.generators.diffusers_generator import Diffusers, DiffusersOptions
for name in sys.argv[1:]:
    try:
        Diffusers(DiffusersOptions(checkpoint=name), ["0"])
    except InputError as error:
        print(error)
"""


@contextmanager
def hub() -> Iterator[str]:
    """A hub on this machine that answers every request with an error named by the repository."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = "GatedRepo" if "gated" in self.path else "RepoNotFound"
            self.send_response(403 if code == "GatedRepo" else 404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_what_the_hub_refuses_is_explained(tmp_path: Path) -> None:
    with hub() as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", HUB, "maker/gated", "maker/absent"],
            capture_output=True,
            text=True,
            env=environment,
        )
    gated, absent = done.stdout.splitlines()
    assert "https://huggingface.co/maker/gated" in gated
    assert "hf auth login" in gated
    assert absent.startswith("generator.checkpoint: maker/absent")
