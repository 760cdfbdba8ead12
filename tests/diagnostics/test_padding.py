"""Ids that no tokenizer knows have no part in any number, whatever their logits; ids masked by design count for 0."""

from collections.abc import Callable
from pathlib import Path

import pytest
import slow
import torch
from tiny_pair import PROBE, TEMPLATE, byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from teachdiag.artefacts import POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.scoring.statistics import statistics
from teachdiag.errors import ContextError
from teachdiag.progress import Reporter
from teachdiag.runs import table_digest
from teachdiag.settings import CaptureSettings, Sampling

ROWS, HOLES = 272, range(100, 105)
UNKNOWN = [*HOLES, *range(262, ROWS)]
KNOWN = sorted(set(range(ROWS)) - set(UNKNOWN))
END = 261


def holed_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with five ids in the middle that stand for nothing."""
    vocabulary = {token: i if i < HOLES.start else i + len(HOLES) for token, i in byte_tokenizer().get_vocab().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE, model_max_length=512
    )


def save_phi(folder: Path, seed: int, bias: dict[int, float]) -> str:
    """A random model whose LM head has a bias, in which ids can be masked or preferred."""
    torch.manual_seed(seed)
    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, initializer_range=0.3, eos_token_id=END, bos_token_id=None, pad_token_id=END,
        )
    )  # fmt: skip
    with torch.no_grad():
        for token, value in bias.items():
            model.lm_head.bias[token] = value
    model.save_pretrained(folder)
    holed_tokenizer().save_pretrained(folder)
    return str(folder)


Capture = Callable[..., Path]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory, manifest_path: str) -> Capture:
    def captured(student: dict[int, float], teacher: dict[int, float]) -> Path:
        folder = tmp_path_factory.mktemp("padded")
        settings = CaptureSettings(
            student=save_phi(folder / "student", 1, student), teacher=save_phi(folder / "teacher", 2, teacher),
            prompts=manifest_path, bank_prompts=3, update_prompts=2, max_new_tokens=6, positions=6,
        )  # fmt: skip
        run_capture(folder / "run", settings, Reporter(quiet=True))
        return folder / "run"

    return captured


@pytest.fixture(scope="module")
def clean(capture: Capture) -> Path:
    run = capture({}, {})
    run_probe(run, PROBE, Reporter(quiet=True))
    return run


def check(run: Path, counted: list[int]) -> None:
    """Every column against plain float64 models, cut to the ids that count."""
    rows = POSITIONS.read(run / "positions").set_index(["context_id", "position"])
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(run.parent / side, dtype=torch.float64) for side in ("student", "teacher")
    )
    for c in read_contexts(run, Positions(6, "first")):
        assert set(c.response) <= set(counted)
        inputs = torch.tensor([c.student_prompt + c.response])
        with torch.no_grad():
            z, w = (m(inputs).logits[0, len(c.student_prompt) - 1 : -1, counted].numpy() for m in (student, teacher))
        for t, token in enumerate(c.response):
            row = rows.loc[c.context_id, t]
            for name, value in slow.position_columns(z[t], w[t], counted.index(token)).items():
                assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
            assert row["student_topk_ids"].tolist() == [counted[v] for v in slow.top(z[t], 32)]
            assert row["teacher_topk_ids"].tolist() == [counted[v] for v in slow.top(w[t], 32)]


def test_every_column_is_over_the_ids_that_the_tokenizer_knows(clean: Path) -> None:
    check(clean, KNOWN)


@pytest.mark.parametrize("junk", [40.0, -1e9, -torch.inf])
def test_nothing_depends_on_the_logits_of_padding(capture: Capture, clean: Path, junk: float) -> None:
    run = capture(dict.fromkeys(UNKNOWN, junk), dict.fromkeys(UNKNOWN, -junk if junk == 40.0 else 0.0))
    run_probe(run, PROBE, Reporter(quiet=True))
    for table in ("contexts", "positions", "gains/p", "gains/p.shuffled_teacher"):
        assert table_digest(run / table) == table_digest(clean / table), table


@pytest.mark.parametrize("mask", [-1e4, -1e9, -torch.inf, torch.finfo(torch.float32).min])
def test_what_both_models_mask_counts_for_nothing(capture: Capture, mask: float) -> None:
    masked = [7, 40, 200]
    run = capture(dict.fromkeys(masked, mask), dict.fromkeys(masked, -torch.inf))
    check(run, [i for i in KNOWN if i not in masked])


@pytest.mark.parametrize(("zero", "other"), [("student", "teacher"), ("teacher", "student")])
def test_what_one_model_masks_is_named(capture: Capture, zero: str, other: str) -> None:
    message = rf"the {zero} gives token '.' \(id 7\) probability 0 in context \d+ at position \d+, and the {other} "
    with pytest.raises(ContextError, match=message):
        capture(**{zero: {7: -torch.inf}, other: {}})


def test_a_masked_id_leaves_jsd_finite_and_exact() -> None:
    z, w = (torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (0, 1))
    z[:, 4], w[:, 9], z[:, 20], w[:, 20] = -torch.inf, -1e9, -torch.inf, -torch.inf
    columns = statistics(z, w, torch.zeros(3, dtype=torch.long))
    for row in range(3):
        p, q = slow.softmax(z[row].numpy()), slow.softmax(w[row].numpy())
        m = (p + q) / 2
        assert columns["jsd"][row].item() == pytest.approx(slow.kl(p, m) / 2 + slow.kl(q, m) / 2, rel=1e-5)
        assert columns["student_entropy"][row].item() == pytest.approx(slow.entropy(p), rel=1e-5)
    assert torch.isinf(columns["forward_kl"]).all()
    assert torch.isinf(columns["reverse_kl"]).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_is_never_sampled(tmp_path: Path, temperature: float) -> None:
    """Though every logit of it is larger than any other."""
    paths = [save_phi(tmp_path / str(seed), seed, dict.fromkeys(UNKNOWN, 60.0)) for seed in (1, 2)]
    settings = CaptureSettings(student=paths[0], teacher=paths[1])
    pair = load_pair(resolve_pair(settings, Reporter(quiet=True)), "float32", "cpu")
    found = sample(pair.student, [(1, 2, 3)] * 20, range(20), Sampling(temperature, 1.0, 0, 8))
    assert {token for rollout in found for token in rollout.token_ids} <= set(KNOWN)
