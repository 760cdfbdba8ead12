"""Servers that answer as vLLM's and SGLang's documentation says, from a tiny model, in a thread; and that misbehave."""

import base64
import io
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from tiny_pair import byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

Json = dict[str, Any]


@dataclass
class Faults:
    """How a server misbehaves; by default not at all."""

    swapped_tokens: bool = False  # two ids of its tokenizer are exchanged
    shift: int = 0  # places by which log-probabilities stand too early
    noise: float = 0.0  # nats that no answer has twice
    cut: int = 0  # tokens that are left of a longer prompt
    max_logprobs: int = 64
    by_id: bool = True  # whether it answers for ids of our choice
    logits: bool = False  # in place of log-probabilities
    unsorted: bool = False  # top lists do not fall
    error_inside: bool = False  # answers about prompts are errors of status 200, as some proxies send them
    adapter: bool = False  # what is served is an adapter of another card's
    owner: str = ""  # what it calls itself
    key: str = ""  # that every request must show
    limit: int = 256
    first: list[int] = field(default_factory=list)  # statuses of the first answers about prompts
    dies_after: int | None = None  # answers about prompts, after which connections just end
    slow: float = 0.0  # seconds an answer


class ModelServer:
    """One model behind an address, and what became of the requests."""

    def __init__(self, path: str, dialect: str, faults: Faults | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.dialect, self.faults = dialect, faults or Faults()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.lock, self.scored, self.under_way, self.most_under_way = threading.Lock(), 0, 0, 0
        self.random = np.random.default_rng(0)
        handler = type("Handler", (_Handler,), {"served": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> "ModelServer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, path: str, body: Json) -> tuple[int, Json]:
        """Status and content; about prompts only when it is their turn, which may be never."""
        faults, about_prompts = self.faults, "prompt" in body or "token_ids" in body or "input_ids" in body
        if path.endswith("detokenize"):
            words = byte_tokenizer(swap=True) if faults.swapped_tokens else self.tokenizer
            return 200, {"prompt" if self.dialect == "vllm" else "text": words.decode(body["tokens"])}
        if not about_prompts:
            return 200, self._about(path)
        with self.lock:
            self.scored += 1
            if faults.dies_after is not None and self.scored > faults.dies_after:
                raise ConnectionAbortedError
            if faults.first:
                return faults.first.pop(0), {"error": {"message": "busy", "code": 0}}
        if faults.error_inside:
            return 200, {"error": {"message": "upstream timed out", "code": 504}}
        time.sleep(faults.slow)
        return self._vllm(path, body) if self.dialect == "vllm" else self._sglang(body)

    def _about(self, path: str) -> Json:
        if path == "/v1/models":
            owner = self.faults.owner or self.dialect
            card = {"id": "taught", "owned_by": owner, "max_model_len": self.faults.limit}
            adapter = {"id": "taught", "owned_by": owner, "max_model_len": None, "parent": "base"}
            return {"data": [card | {"id": "base"}, adapter] if self.faults.adapter else [card]}
        return {"version": "0.32.0"}

    def logq(self, ids: Sequence[int]) -> np.ndarray:
        """What predicts each token, and the one behind the last, shape (len(ids), vocabulary); float64."""
        with self.lock, torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0].double()
            logits += self.faults.noise * torch.from_numpy(self.random.normal(size=logits.shape))
            return (logits if self.faults.logits else logits.log_softmax(-1)).numpy()

    def _rows(self, ids: Sequence[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
        """The prompt as the server sees it; what it says predicts token 1, 2, ...; and what it generates by."""
        ids = list(ids)[-self.faults.cut :] if self.faults.cut else list(ids)
        logq = self.logq(ids)
        places = np.minimum(np.arange(len(ids) - 1) + self.faults.shift, len(ids) - 1)
        return ids, logq[places], logq[-1]

    def _vllm(self, path: str, body: Json) -> tuple[int, Json]:
        params = body.get("sampling_params", body)
        if path == "/inference/v1/generate" and not self.faults.by_id:
            return 404, {"detail": "Not Found"}
        wanted = params.get("prompt_logprobs") or 0
        if wanted > self.faults.max_logprobs:
            message = (
                f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {self.faults.max_logprobs}"
            )
            return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
        ids, rows, following = self._rows(body.get("token_ids") or body["prompt"])
        choice: Json = {"index": 0, "text": "", "finish_reason": "length"}
        listed = [None] + [_entries(row, token, wanted) for row, token in zip(rows, ids[1:], strict=True)]
        if path == "/v1/completions":
            assert body["model"] == "taught"
            choice["prompt_logprobs"] = listed if wanted else None
            if params.get("logprobs"):
                best = following.argsort()[::-1][: params["logprobs"]]
                choice["logprobs"] = {"top_logprobs": [{f"token_id:{i}": following[i] for i in best}]}
            return 200, {"choices": [choice]}
        start = params["prompt_logprob_start"]
        asked = np.array(params["prompt_logprob_token_ids"])
        matrix = np.take_along_axis(rows[start:], asked[: len(rows) - start], 1).astype(np.float32)
        buffer = io.BytesIO()
        np.save(buffer, matrix)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        return 200, {"choices": [choice], "prompt_logprobs": listed, "prompt_token_id_logprobs": encoded}

    def _sglang(self, body: Json) -> tuple[int, Json]:
        ids, rows, following = self._rows(body["input_ids"])
        start, top = body.get("logprob_start_len", -1), body["top_logprobs_num"]
        told: Json = {"prompt_tokens": len(ids), "finish_reason": {"type": "length"}}
        told["output_top_logprobs"] = [[[following[i], int(i), None] for i in following.argsort()[::-1][:top]]]
        if start >= 0:
            seen, tokens = rows[start:], ids[start + 1 :]
            own = [[row[token], token, None] for row, token in zip(seen, tokens, strict=True)]
            best = [[[row[i], int(i), None] for i in row.argsort()[::-1][:top]] for row in seen]
            if self.faults.unsorted:
                best = [sorted(entries, key=lambda entry: entry[1]) for entries in best]
            asked = [[[row[i], i, None] for i in body.get("token_ids_logprob", [])] for row in seen]
            told |= {"input_token_logprobs": [[None, ids[start], None], *own], "input_top_logprobs": [None, *best]}
            if "token_ids_logprob" in body:
                told["input_token_ids_logprobs"] = [None, *asked]
        return 200, {"text": "", "meta_info": told}


def _entries(row: np.ndarray, token: int, wanted: int) -> Json:
    """The ranked top list of one position, and the realised token."""
    order = row.argsort()[::-1]
    ids = [token, *(int(i) for i in order[:wanted])]
    return {
        str(i): {"logprob": row[i], "rank": int((row > row[i]).sum()) + 1, "decoded_token": "?"}
        for i in dict.fromkeys(ids)
    }


class _Handler(BaseHTTPRequestHandler):
    served: ModelServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body: Json) -> None:
        key = self.served.faults.key
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            status, content = 401, {"error": "Unauthorized"}
        else:
            with self.served.lock:
                self.served.under_way += 1
                self.served.most_under_way = max(self.served.most_under_way, self.served.under_way)
            try:
                status, content = self.served.answer(self.path, body)
            except ConnectionAbortedError:
                self.close_connection = True
                return
            finally:
                with self.served.lock:
                    self.served.under_way -= 1
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
