"""What vLLM's and SGLang's servers are asked, and how their answers read: prompt log-probabilities, token ids, texts.

Both answer one request a sequence. Of every token from some place on they give its own log-probability and the model's
top list there; vLLM from 0.32 on also log-probabilities at ids of our choice, position by position
(`prompt_logprob_token_ids` of /inference/v1/generate, with its V2 model runner), and SGLang at one list of ids for all
positions of a request (`token_ids_logprob` of /generate), so that what different positions need goes in one list.
"""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from teachdiag.artefacts import TOP
from teachdiag.diagnostics.engines.served.transport import Refusal, Transport
from teachdiag.errors import InputError, ModelError

_PIECE = 32  # places whose ids of our choice go into one request to SGLang: at most 1,024 ids for each of them
_NEXT = 8  # ids whose probability of coming next is compared with what the prompt's log-probabilities say


class Listed(NamedTuple):
    """What a server says of n tokens of a sequence: nats, float32.

    Attributes:
        realised: log q of the tokens themselves, shape (n,).
        asked: log q at the ids that were asked for, shape (n, ids); None where none were.
        top_ids: the model's top ids before each token, by falling probability, shape (n, 32), int64.
        top: log q at these, shape (n, 32).
    """

    realised: np.ndarray
    asked: np.ndarray | None
    top_ids: np.ndarray
    top: np.ndarray


@dataclass(frozen=True)
class Server(ABC):
    """A model behind an address.

    Attributes:
        http: the way there.
        model: its id there.
        limit: longest sequence, in tokens.
        program: name and version of what serves it.
    """

    http: Transport
    model: str
    limit: int
    program: str

    @abstractmethod
    def score(self, ids: Sequence[int], places: np.ndarray, asked: np.ndarray | None = None) -> Listed:
        """Return what the model says of some tokens of a sequence.

        Args:
            ids: the sequence, which ends with the last of these tokens.
            places: where they are, ascending, from 1 on, shape (n,), int.
            asked: ids whose log q is wanted at each of them, shape (n, ids), int.

        Raises:
            Refusal: the server does not do it.
            ModelError: it fails, cuts the sequence, or tells of other tokens.
        """

    @abstractmethod
    def following(self, ids: Sequence[int]) -> dict[int, float]:
        """Log q of the likeliest tokens after a sequence, by their ids, as the server gives them while it generates."""

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """What the served tokenizer makes of some ids, special tokens included."""

    def lack(self) -> str:
        """Ask why the server cannot be asked for ids of our choice; '' if it can."""
        try:
            self.score((0, 0), np.array([1]), np.zeros((1, 1), np.int32))
        except Refusal as refusal:
            return refusal.reason
        except _NoMatrix:
            return "it takes no prompt_logprob_token_ids: vLLM has them from 0.32 on"
        return ""

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell of an answer that is not of the form that the server's documentation gives."""
        try:
            yield
        except InputError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{self.http.root} answers in a form that is not known ({type(error).__name__}: {error}): it calls "
                f"itself {self.program}"
            ) from error

    def _refuse_cut(self, told: int, sent: int) -> None:
        """Refuse an answer about another number of tokens than were sent."""
        if told != sent:
            raise ModelError(
                f"{self.http.root} answers for {told} of {sent} tokens: it cuts what it is sent; start it with a "
                "longer context, and so that it does not cut (SGLang: without --allow-auto-truncate)"
            )

    def _refuse_short(self, entries: int) -> None:
        """Refuse a top list that is shorter than ours."""
        if entries < TOP:
            raise ModelError(
                f"{self.http.root} gives {entries} log-probabilities a position: {TOP} are needed (vLLM: "
                f"--max-logprobs {TOP} or more)"
            )

    def _refuse_elsewhere(self, told: str, token: int, place: int) -> NoReturn:
        raise ModelError(
            f"{self.http.root} is not aligned: at place {place} of a sequence it tells of {told}, where token id "
            f"{token} was sent"
        )


class _NoMatrix(ModelError):
    """A server passed over that ids of our choice were asked for."""


class VllmServer(Server):
    """`vllm serve`."""

    def score(self, ids: Sequence[int], places: np.ndarray, asked: np.ndarray | None = None) -> Listed:
        """Return what the model says of some tokens; of ids of our choice, at every place from the first on."""
        params: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": TOP}
        if asked is None:
            answer = self.http.post("/v1/completions", {"model": self.model, "prompt": list(ids)} | params)
            with self._reading():
                return self._listed(answer["choices"][0]["prompt_logprobs"], ids, places)
        first = int(places[0])
        everywhere = np.zeros((len(ids) - first, asked.shape[1]), np.int64)  # what is asked for elsewhere is not read
        everywhere[places - first] = asked
        of_ours = {"prompt_logprob_token_ids": everywhere.tolist(), "prompt_logprob_start": first - 1}
        body = {
            "model": self.model,
            "token_ids": list(ids),
            "sampling_params": params | of_ours | {"detokenize": False},
        }
        answer = self.http.post("/inference/v1/generate", body)
        with self._reading():
            if answer.get("prompt_token_id_logprobs") is None:
                raise _NoMatrix(f"{self.http.root} gives no log-probabilities at ids of our choice")
            matrix = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])))
            self._refuse_cut(len(matrix) + first, len(ids))
            at_places = matrix[places - first].astype(np.float32)
            return self._listed(answer["prompt_logprobs"], ids, places)._replace(asked=at_places)

    def following(self, ids: Sequence[int]) -> dict[int, float]:
        """Log q of the likeliest tokens after a sequence."""
        params = {"max_tokens": 1, "temperature": 1.0, "logprobs": _NEXT, "return_tokens_as_token_ids": True}
        answer = self.http.post("/v1/completions", {"model": self.model, "prompt": list(ids)} | params)
        with self._reading():
            (listed,) = answer["choices"][0]["logprobs"]["top_logprobs"]
            return {int(name.removeprefix("token_id:")): float(value) for name, value in listed.items()}

    def text(self, ids: Sequence[int]) -> str:
        """What the served tokenizer makes of some ids."""
        answer = self.http.post("/detokenize", {"model": self.model, "tokens": list(ids)})
        with self._reading():
            return str(answer["prompt"])

    def _listed(self, rows: Sequence[Mapping[str, Any] | None], ids: Sequence[int], places: np.ndarray) -> Listed:
        """Read one object a token, by ids: the top list with its ranks, and the token itself whatever its rank."""
        self._refuse_cut(len(rows), len(ids))
        realised, tops = [], []
        for place in places.tolist():
            row = rows[place] or {}
            if str(ids[place]) not in row:
                self._refuse_elsewhere(f"token ids {', '.join(list(row)[:3])}, ...", ids[place], place)
            self._refuse_short(len(row))
            realised.append(row[str(ids[place])]["logprob"])
            tops.append(sorted(((int(i), e["logprob"], e["rank"]) for i, e in row.items()), key=lambda e: e[2])[:TOP])
        return _arrays(realised, tops)


class SglangServer(Server):
    """`sglang.launch_server`."""

    def score(self, ids: Sequence[int], places: np.ndarray, asked: np.ndarray | None = None) -> Listed:
        """Return what the model says of some tokens; of ids of our choice, a few places at a time."""
        if asked is None:
            return self._piece(ids, places, None)
        rows = [slice(start, start + _PIECE) for start in range(0, len(places), _PIECE)]
        pieces = [self._piece(ids[: places[part][-1] + 1], places[part], asked[part]) for part in rows]
        return Listed(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))

    def following(self, ids: Sequence[int]) -> dict[int, float]:
        """Log q of the likeliest tokens after a sequence."""
        body = self._body(ids) | {"top_logprobs_num": _NEXT}
        answer = self.http.post("/generate", body)
        with self._reading():
            (listed,) = answer["meta_info"]["output_top_logprobs"]
            return {int(entry[1]): float(entry[0]) for entry in listed}

    def text(self, ids: Sequence[int]) -> str:
        """What the served tokenizer makes of some ids."""
        body = {"model": self.model, "tokens": list(ids), "skip_special_tokens": False}
        answer = self.http.post("/detokenize", body)
        with self._reading():
            return str(answer["text"])

    def _body(self, ids: Sequence[int]) -> dict[str, Any]:
        sampling = {"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
        return {"input_ids": list(ids), "sampling_params": sampling, "return_logprob": True}

    def _piece(self, ids: Sequence[int], places: np.ndarray, asked: np.ndarray | None) -> Listed:
        """Score tokens with one request; the ids that any of them needs are asked for all."""
        first = int(places[0])  # the server's lists begin one place before, with what stands for nothing
        body = self._body(ids) | {"logprob_start_len": first - 1, "top_logprobs_num": TOP}
        wanted = np.zeros(0, np.int64) if asked is None else np.unique(asked)
        if asked is not None:
            body["token_ids_logprob"] = wanted.tolist()
        answer = self.http.post("/generate", body)
        with self._reading():
            told, rows = answer["meta_info"], (places - first + 1).tolist()
            self._refuse_cut(int(told["prompt_tokens"]), len(ids))
            self._refuse_cut(len(told["input_token_logprobs"]) - 1 + first, len(ids))
            tokens, lists = (
                [told[name][row] for row in rows] for name in ("input_token_logprobs", "input_top_logprobs")
            )
            for place, (_, token, *_) in zip(places.tolist(), tokens, strict=True):
                if int(token) not in (ids[place], 0):  # by which it names the last row of a head, too
                    self._refuse_elsewhere(f"token id {token}", ids[place], place)
            self._refuse_short(min(map(len, lists)))
            tops = [[(int(entry[1]), entry[0], 0) for entry in entries[:TOP]] for entries in lists]
            listed = _arrays([entry[0] for entry in tokens], tops)
            if asked is None:
                return listed
            found = [{int(entry[1]): entry[0] for entry in told["input_token_ids_logprobs"][row]} for row in rows]
            matrix = np.array([[row[i] for i in wanted.tolist()] for row in found], np.float32)
            return listed._replace(asked=np.take_along_axis(matrix, np.searchsorted(wanted, asked), 1))


_PROGRAMS: dict[object, tuple[type[Server], str, tuple[str, ...]]] = {  # by their owned_by; where versions are told
    "vllm": (VllmServer, "vLLM", ("/version",)),
    "sglang": (SglangServer, "SGLang", ("/server_info", "/get_server_info")),
}


def connect(url: str, model: str, connections: int) -> Server:
    """Ask who answers at an address.

    Args:
        url: ends in /v1.
        model: id of the model there.
        connections: requests under way at the same time, at most.

    Raises:
        ModelError: nobody answers there, neither vLLM nor SGLang does, or there is no such model.
    """
    http = Transport(url, connections)
    listed = http.get("/v1/models", patient=False)
    try:
        cards = {str(card["id"]): card for card in listed["data"]}
        if model not in cards:
            raise ModelError(f"{url} serves {', '.join(cards) or 'no model'}: give one of these as --teacher")
        card = cards[model]
        base = cards.get(str(card.get("parent")), {})  # of an adapter that vLLM serves, whose length is not told
        owner, limit = card.get("owned_by"), card.get("max_model_len") or base.get("max_model_len")
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{url}/models lists no models: give the address of a server of vLLM or SGLang") from error
    if owner not in _PROGRAMS or not isinstance(limit, int):
        raise ModelError(
            f"{url} is a server of {owner!r}: only vLLM and SGLang are known, which say whose they are (owned_by) "
            "and how long a sequence may be (max_model_len)"
        )
    kind, name, places = _PROGRAMS[owner]
    return kind(http, model, limit, f"{name} {_version(http, places)}")


def _version(http: Transport, places: Sequence[str]) -> str:
    for place in places:
        try:
            return str(http.get(place)["version"])
        except (Refusal, KeyError, TypeError):  # newer and older versions tell it elsewhere
            continue
    return "of a version that it does not tell"


def _arrays(realised: list[float], tops: list[list[tuple[int, float, int]]]) -> Listed:
    ids, values = (np.array([[entry[part] for entry in top] for top in tops]) for part in (0, 1))
    return Listed(np.array(realised, np.float32), None, ids.astype(np.int64), values.astype(np.float32))
