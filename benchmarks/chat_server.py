"""A small server of the OpenAI protocol: plain transformers on a model's folder, none of our own rendering.

It answers `/v1/models` and `/v1/chat/completions` as servers do: the folder's chat template, its
`generation_config.json` as defaults, what the request says on top, and usage in tokens.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from transformers import AutoModelForCausalLM, AutoTokenizer

_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass
class ChatModel:
    """The model in a folder; ``most_tokens`` is a limit of answers that no request can raise."""

    folder: Path
    most_tokens: int = 1024
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        kwargs = body.get("chat_template_kwargs", {})
        inputs = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True, **kwargs
        )
        prompt, most = inputs["input_ids"].shape[1], min(body.get("max_tokens") or self.most_tokens, self.most_tokens)
        with self.lock, torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=most, **_decoding(body))[0, prompt:].tolist()
        ends = self.model.generation_config.eos_token_id
        ended = tokens[-1] in (ends if isinstance(ends, list) else [ends])
        message = {"role": "assistant", "content": self.tokenizer.decode(tokens, skip_special_tokens=True)}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop" if ended else "length"}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": len(tokens),
                "total_tokens": prompt + len(tokens),
            },
        }


def _decoding(body: dict[str, Any]) -> dict[str, Any]:
    """What the request says about decoding."""
    said = {name: body[name] for name in (*_SAMPLING, "repetition_penalty") if name in body}
    if said.get("temperature") == 0:
        return {"do_sample": False, **dict.fromkeys(_SAMPLING)}
    return said | ({"do_sample": True} if "temperature" in said else {})


def chat_app(models: dict[str, ChatModel]) -> FastAPI:
    """The server of models by their names."""
    app = FastAPI()

    @app.get("/v1/models")
    def listed() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        if body.get("model") not in models:
            raise HTTPException(404, f"The model {body.get('model')!r} does not exist.")
        return models[body["model"]].complete(body)

    return app


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an app on a free port of this machine, while the body runs."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()
