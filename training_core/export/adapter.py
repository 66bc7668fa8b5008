"""The adapter for servers that put it on the released base: vLLM, and KServe with it."""

import json
import shlex
from pathlib import Path

import yaml
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from training_core.config import SettingsError
from training_core.export.lora import PEFT_PREFIX, read_lora
from training_core.export.source import TEMPLATE_FILE, Source, form_usage, write_json, write_small_files
from training_core.export.vllm_rules import VLLM, max_lora_rank, served_model

MANIFEST_FILE = "inferenceservice.yaml"
_MOUNT = "/mnt/models"  # where KServe's storage initializer puts what STORAGE_URI names


def write_served_adapter(source: Source, folder: Path) -> None:
    """Write the adapter with the layer names of the released base, tokenizer, template and a manifest for KServe.

    Raises ``SettingsError`` as ``read_lora`` does, and when vLLM serves no adapter on this base or of this rank.
    """
    served_model(source.base)
    if source.weights != "released":
        raise SettingsError(["--weights: the base of an adapter stays as released; leave it out, or export merged"])
    lora = read_lora(source.adapter, source.base)
    max_lora_rank(lora.rank)
    weights: dict[str, Tensor] = {}
    for layer, (a, b) in lora.factors.items():
        weights |= {f"{PEFT_PREFIX}{layer}.lora_A.weight": a, f"{PEFT_PREFIX}{layer}.lora_B.weight": b}
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = json.loads((source.adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    released = {"base_model_name_or_path": source.base_name, "revision": source.base_commit}
    write_json(folder / CONFIG_NAME, config | released)
    write_small_files(source, folder)
    (folder / MANIFEST_FILE).write_text(_manifest(source, lora.rank), encoding="utf-8")


def adapter_usage(source: Source, folder: Path) -> str:
    """How to serve the adapter in ``folder``, in Markdown."""
    rank = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["r"]
    lines = " \\\n  ".join(["vllm serve " + source.base_name, *_flags(source, rank, ".")])
    return f"""## Serve it

In this folder, with vLLM {VLLM} or newer:

```
{lines}
```

Requests name the model `{source.served_name}`; the base alone answers under its own name. Each flag counts: without
`--max-lora-rank` vLLM takes no rank above 16, without the template and `enable_thinking` it asks otherwise than in
training, and without the last two lines the base's `generation_config.json` brings its penalties and sampling back.
{_where(source)}For KServe: copy this folder to where the cluster reads, put its address into
`{MANIFEST_FILE}` and `kubectl apply` it.
{form_usage(source)}"""


def _where(source: Source) -> str:
    return "" if source.base_commit else f"`{source.base_name}` is the folder of the base; give its whole path.\n"


def _flags(source: Source, rank: int, place: str) -> list[str]:
    defaults = json.dumps({"temperature": 0, "max_new_tokens": source.max_new_tokens})
    return [
        *([f"--revision {source.base_commit}"] if source.base_commit else []),
        "--dtype bfloat16",
        f"--enable-lora --max-lora-rank {max_lora_rank(rank)} --lora-modules {source.served_name}={place}",
        f"--chat-template {place}/{TEMPLATE_FILE}",
        f"--default-chat-template-kwargs {shlex.quote(json.dumps({'enable_thinking': False}))}",
        "--generation-config vllm",
        f"--override-generation-config {shlex.quote(defaults)}",
    ]


def _manifest(source: Source, rank: int) -> str:
    container = {
        "name": "kserve-container",
        "image": f"vllm/vllm-openai:v{VLLM}",
        "args": ["--model", source.base_name, *shlex.split(" ".join(_flags(source, rank, _MOUNT)))],
        "env": [{"name": "STORAGE_URI", "value": "s3://REPLACE/with-the-address-of-this-folder"}],
        "ports": [{"containerPort": 8000, "protocol": "TCP"}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": source.served_name},
        "spec": {"predictor": {"containers": [container]}},
    }
    return yaml.safe_dump(service, sort_keys=False)
