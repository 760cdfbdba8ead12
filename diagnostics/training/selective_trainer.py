"""On-policy distillation on selected positions: TRL's trainer, with our selection, and our losses on the kept rows.

TRL samples the rollouts, moves the weights, and brings accelerate, FSDP, DeepSpeed, vLLM, checkpoints and logging. Here
every global rollout batch is scored by both models without gradient, weighed as a whole, and only rows that carry loss
go through the LM head again. The teacher reads each rollout once: its hidden states at these rows wait for the loss. So
do the student's, with their graph, where one process trains on one micro-batch a step; elsewhere it reads them again.

TRL offers no hooks for this, so that ours goes by five of its private methods; `pyproject.toml` bounds its version:

- `_tokenize_prompts`, overridden: prompts come as token ids, rendered as those are on which the student is judged.
- `_generate_single_turn`, overridden: each rollout has a random stream of its own, so that runs can be compared.
- `_generate_and_score_completions`, overridden: a rollout batch leaves it with the weights of its positions.
- `_compute_loss`, overridden: the loss of the kept positions alone, by our definitions.
- `_get_last_hidden_state`, called: the states that feed the LM head, at every position of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, LogitsProcessorList
from trl import DistillationTrainer
from trl.models.utils import unwrap_model_for_generation

from teachdiag.diagnostics.contexts.sampling import KnownAlone, SeededSampling, ended, left_padded, warpers
from teachdiag.diagnostics.models.head import head_of
from teachdiag.diagnostics.models.vocabulary import known_ids
from teachdiag.diagnostics.processes.devices import without_autocast
from teachdiag.diagnostics.processes.parameters import local
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.statistics import log_probabilities, statistics
from teachdiag.diagnostics.scoring.tiles import Columns, States, tiled, tiles
from teachdiag.diagnostics.training.selection_facts import MEASURED, facts_of
from teachdiag.errors import ContextError, EstimationError
from teachdiag.formulas import stored_name
from teachdiag.progress import Reporter
from teachdiag.scores import Array
from teachdiag.seeds import derive_seed
from teachdiag.selectors import Selection
from teachdiag.selectors.weighting import Weights
from teachdiag.settings import LossMean

_DEGENERATE = 0.5  # share of places decided by ties, or of empty rollouts, that is worth a warning


class SelectiveDistillationTrainer(DistillationTrainer):  # type: ignore[misc]
    """`trl.DistillationTrainer` that spends its loss on selected positions.

    Selection is over the global rollout batch (arXiv 2605.26844, Eq. 11 to 13): statistics of all ranks are put side by
    side, scores are normalised over all of them, and exactly ceil(budget N) positions are kept, the same ones however
    many processes there are. The loss is the mean over kept positions (Eq. 7), or the mean over sequences of each one's
    mean, as the released code has it.
    """

    _tag_names = ["trl", "distillation", "teachdiag"]  # noqa: RUF012

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 (whatever TRL's trainer takes)
        selection: Selection | None = None,
        loss: str = "reverse_kl",
        jsd_beta: float = 0.5,
        loss_mean: LossMean = "positions",
        tile_positions: int = 256,
        rollout_seed: int = 0,
        reporter: Reporter | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Build TRL's trainer from its own arguments, and take ours.

        Args:
            args: of `trl.DistillationTrainer`. Its `beta` is not read: `loss` says which divergence is meant.
            selection: which positions carry the loss; TA-OPD at 10% by default.
            loss: OPD loss of a position, by its name in `teachdiag.losses`.
            jsd_beta: the teacher's share of the mixture, for `jsd`.
            loss_mean: 'positions': mean over kept positions of the global batch; 'sequences': mean over sequences of
                the mean over their kept positions, sequences without one counting 0.
            tile_positions: positions whose logits exist at the same time.
            rollout_seed: with transformers, each rollout has a random stream of its own, made from this seed, the step
                and its place in the global batch: runs with equal seeds start from equal random numbers.
            reporter: told where a mask is degenerate.
            kwargs: of `trl.DistillationTrainer`.
        """
        super().__init__(*args, **kwargs)
        _switch_off_dropout(self.model)
        rows = self.model.config.get_text_config().vocab_size
        self._known = known_ids(self._tokenizer, rows)
        if self.use_vllm and self.vllm_mode == "colocate":
            padding = dict.fromkeys(self._known.unknown(rows), -math.inf)
            self.vllm_generation.generation_kwargs |= {"logit_bias": padding} if padding else {}
        self.selection = selection or Selection()
        self.loss_mean, self.tile_positions, self.rollout_seed = loss_mean, tile_positions, rollout_seed
        self._position_loss = position_loss(loss, {"jsd_beta": jsd_beta})
        self.reporter, self._warned = reporter or Reporter(), set[str]()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        """Make TRL's optimizer, and measure how far each of its steps moves the weights."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: self._remember(optimizer))
        optimizer.register_step_post_hook(lambda *_: self._log_update(optimizer))
        return optimizer

    @torch.no_grad()
    def _remember(self, optimizer: torch.optim.Optimizer) -> None:
        self._before = [local(parameter).clone() for parameter in _weights(optimizer)]

    @torch.no_grad()
    def _log_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the Euclidean norm of a step; shards of all processes count under FSDP."""
        pairs = zip(_weights(optimizer), self._before, strict=True)
        square = sum(old.sub_(local(now)).square_().sum() for now, old in pairs)  # in the copies' own memory
        if self.accelerator.distributed_type == DistributedType.FSDP:
            square = self.accelerator.reduce(square, "sum")
        self._before.clear()
        self._metrics["train"]["selection/update_norm"].append(float(square) ** 0.5)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Take prompts that are token ids as they are; let TRL render texts and conversations."""
        if isinstance(prompts[0], list) and isinstance(prompts[0][0], int):
            return prompts, None, {}
        rendered: tuple[list[list[int]], Any, dict[str, Any]] = super()._tokenize_prompts(prompts)
        return rendered

    def _generate_single_turn(
        self,
        prompt_ids: Sequence[Sequence[int]],
        images: Any,  # noqa: ANN401
        multimodal_fields: dict[str, Any],
        has_tool_images: bool = False,
    ) -> list[list[int]]:
        """Sample one completion a prompt; without vLLM, each from its own random stream."""
        if self.use_vllm or images is not None:
            completions: list[list[int]] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, has_tool_images
            )
            stranger = self._known.stranger(token for completion in completions for token in completion)
            if stranger is not None:
                raise ContextError(
                    f"step {self.state.global_step}: a rollout holds id {stranger}, which is padding of the student's "
                    "LM head: sample without vLLM's server"
                )
            return completions
        first = self.accelerator.process_index * len(prompt_ids)
        seeds = [
            derive_seed(self.rollout_seed, "rollout", self.state.global_step, first + row)
            for row in range(len(prompt_ids))
        ]
        pad, device = self._tokenizer.pad_token_id, self.accelerator.device
        ids, mask = left_padded(prompt_ids, pad, device)
        uniforms = np.stack([np.random.default_rng(seed).random(self.max_completion_length) for seed in seeds])
        # Greedy, because the last processor has already drawn: it leaves one token a row.
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_completion_length,
            eos_token_id=self.eos_token_ids,
            pad_token_id=pad,
            repetition_penalty=self.repetition_penalty,
            disable_compile=True,
        )
        bent = warpers(self.temperature, self.top_k, self.top_p)
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(
                    [KnownAlone(self._known, device), *bent, SeededSampling(uniforms, ids.shape[1], device)]
                ),
            )
        return [list(ended(row, frozenset(self.eos_token_ids)).token_ids) for row in output[:, ids.shape[1] :].tolist()]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample a rollout batch, and weigh its positions.

        Returns:
            TRL's batch, with `position_weights`, shape (sequences, completion), `kept`, where they are not 0, and
            `teacher_states`: for each sequence the teacher's hidden states that predict its kept tokens, shape
            (kept, width); `student_states` likewise, with their graph, if they are not to be read again. TRL shuffles
            the sequences and cuts all of these into micro-batches.
        """
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()
        states = {"teacher_states": self._taught(batch, mask)}
        if self.model.training:
            weights, batch["num_items_in_batch"], read = self._weigh(batch, mask, states["teacher_states"])
            states |= {} if read is None else {"student_states": read}
        else:
            weights = mask.float()
        kept = weights != 0
        sizes = kept.sum(1).tolist()
        by_sequence = {name: list(rows[kept[mask]].split_with_sizes(sizes)) for name, rows in states.items()}
        return batch | {"position_weights": weights, "kept": kept} | by_sequence

    @property
    def _reads_once(self) -> bool:
        """Whether the student's one pass is scored and trained on: its batch is whole, and no wrapper stands around it.

        A wrapper, as of DDP or FSDP, has to be told of the pass whose gradient is taken.
        """
        bare = self.accelerator.unwrap_model(self.model_wrapped) is self.model_wrapped
        return bare and self.accelerator.num_processes == 1 and self.args.gradient_accumulation_steps == 1

    @torch.no_grad()
    def _taught(self, batch: dict[str, Any], mask: Tensor) -> Tensor:
        """Return the teacher's hidden states that predict the marked tokens, shape (n, width)."""
        self.teacher_model.eval()
        unwrapped = self.accelerator.unwrap_model(self.teacher_model)
        states: Tensor = self._forward_redirection(self.teacher_model, unwrapped, self._hidden, unwrapped, batch, mask)
        return states

    @torch.no_grad()
    def _weigh(self, batch: dict[str, Any], mask: Tensor, taught: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Score this rank's positions, weigh those of all ranks.

        Returns:
            This rank's weights, shape (sequences, completion), the kept of all ranks, and the student's hidden states
            at the marked positions, shape (n, width), with their graph, where they are the ones to train on.
        """
        unwrapped = self.accelerator.unwrap_model(self.model_wrapped)
        columns, read = self._forward_redirection(
            self.model_wrapped, unwrapped, self._statistics, unwrapped, batch, mask, taught
        )
        ranks = gather_object([columns])
        everywhere = {name: np.concatenate([rank[name] for rank in ranks]) for name in columns}
        self._refuse_gaps(everywhere)  # after the exchange, so that every process learns of it
        sizes = [len(rank["position"]) for rank in ranks]
        # Rows of a sequence are numbered by its place in the global batch, which no number of processes changes.
        sequences = np.cumsum([0, *(rank["sequences"][0] if len(rank["sequences"]) else 0 for rank in ranks)])
        everywhere["context_id"] += np.repeat(sequences[:-1], sizes)
        weighed = self._weighed(everywhere)
        start = sum(sizes[: self.accelerator.process_index])
        here = slice(start, start + sizes[self.accelerator.process_index])
        weights = torch.zeros(mask.shape, device=mask.device)  # (sequences, completion)
        weights[mask] = torch.from_numpy(self._averaged(weighed, everywhere)[here]).to(weights)
        return weights, weights.new_tensor(weighed.weights.sum()), read

    def _refuse_gaps(self, columns: Columns) -> None:
        bad = [name for name, values in columns.items() if not np.isfinite(values).all()]
        if bad:
            raise ContextError(
                f"step {self.state.global_step}: {bad[0]} is not finite at some position: the student or the teacher "
                "gives NaN or infinite logits; try a smaller learning rate, or check the teacher's weights"
            )

    def _weighed(self, columns: Columns) -> Weights:
        """Weigh the global batch and log what was kept; say once in what way a mask is degenerate."""
        step = self.state.global_step
        try:
            weighed = self.selection.weigh(columns, step)
        except EstimationError as error:
            self._warn("saturated", f"step {step}: {error}; such batches are masked at random")
            weighed = replace(self.selection, selector="random").weigh(columns, step)._replace(tied=1.0)
        facts = facts_of(weighed, columns, self.selection.k, self.eos_token_ids)
        for name, value in facts.items():
            self._metrics["train"][f"selection/{name}"].append(value)
        if _DEGENERATE < weighed.tied < 1 or (weighed.tied == 1 and "saturated" not in self._warned):
            chosen = f"{weighed.tied:.0%} of the positions that {self.selection.selector} keeps"
            self._warn("ties", f"step {step}: ties decide {chosen}, so that the mask is largely random")
        if facts["empty"] > _DEGENERATE:
            self._warn(
                "empty", f"step {step}: {facts['empty']:.0%} of the rollouts end at once, with nothing to learn on"
            )
        return weighed

    def _warn(self, kind: str, sentence: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self.reporter.say(sentence)

    def _averaged(self, weighed: Weights, columns: Columns) -> Array:
        """Scale weights so that their weighted mean is the wanted mean of losses."""
        if self.loss_mean == "positions":
            return weighed.weights
        sequences = columns["context_id"]
        totals = np.bincount(sequences, weighed.weights)
        scale: Array = weighed.weights.sum() / (len(totals) * np.maximum(totals[sequences], 1e-12))
        return weighed.weights * scale

    def _statistics(
        self,
        unwrapped_student: Any,  # noqa: ANN401
        batch: dict[str, Any],
        mask: Tensor,
        taught: Tensor,
    ) -> tuple[Columns, Tensor | None]:
        """Measure what the selector and the log read, at this rank's positions, shape (n,) or (n, 32) each.

        Returns:
            With these, the student's hidden states there, shape (n, width), if this is its only pass.
        """
        tokens = batch["completion_ids"][mask]  # (n,), before the passes: a GPU waits for what a mask finds
        reads_once = self._reads_once
        with torch.set_grad_enabled(reads_once):
            hidden = self._student_hidden(unwrapped_student, batch, mask)
        states = self._states(unwrapped_student, hidden.detach(), taught)
        named = {*self.selection.columns, *(stored_name(name, self.selection.k) for name in MEASURED)}

        def measure(student: Tensor, teacher: Tensor, rows: slice) -> dict[str, Tensor]:
            every = statistics(student, teacher, tokens[rows])
            return {name: column for name, column in every.items() if name in named}

        columns = tiled(states, measure, self.tile_positions)
        sequence, position = mask.nonzero(as_tuple=True)  # (n,) each
        ends = (mask * torch.arange(mask.size(1), device=mask.device)).amax(1)[sequence]  # (n,), last own positions
        columns |= {
            "context_id": sequence.cpu().numpy(),
            "position": position.cpu().numpy(),
            "token_id": tokens.cpu().numpy(),
            "pos_norm": (position / ends.clamp_min(1)).cpu().numpy(),
            "hidden_norm_sq": states.student.float().square().sum(-1).cpu().numpy(),
            "sequences": np.full(len(tokens), len(mask)),
        }
        return columns, hidden if reads_once else None

    def _student_hidden(self, unwrapped_student: Any, batch: dict[str, Any], mask: Tensor) -> Tensor:  # noqa: ANN401
        """Read the student's hidden states at the marked positions, shape (n, width)."""
        with self.accelerator.autocast():  # which accelerate puts around the whole model's forward alone
            return self._hidden(unwrapped_student, batch, mask)

    def _states(self, unwrapped_student: Any, hidden: Tensor, taught: Tensor) -> States:  # noqa: ANN401
        """Put hidden states of the same rows side by side, shape (n, width) each, with the heads of both models."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        return States(hidden, head_of(unwrapped_student, self._known), taught, head_of(teacher, self._known))

    def _hidden(self, unwrapped_model: Any, batch: dict[str, Any], mask: Tensor) -> Tensor:  # noqa: ANN401
        """Return a model's hidden states that predict the marked tokens, shape (n, width).

        TRL pads prompts on the left; the models read every sequence from its first place, padded on the right, as
        capture lays it out: neither learned positions nor any kind of attention or recurrence sees the padding then.
        A whole rollout batch is read by micro-batches: no pass takes more room than training, and a sequence is read
        in a batch of the size in which it is trained on.
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)  # (sequences, width)
        lengths, width = batch["prompt_mask"].sum(1), ids.size(1)
        padding = batch["prompt_ids"].size(1) - lengths
        ids = ids.gather(1, (torch.arange(width, device=ids.device) + padding[:, None]) % width)
        found: list[Tensor] = []
        for part in tiles(len(ids), self.args.per_device_train_batch_size):
            rows, places = mask[part].nonzero(as_tuple=True)  # (kept,) each
            states = self._get_last_hidden_state(unwrapped_model, ids[part], None, width)
            found.append(states[rows, lengths[part][rows] + places - 1])
        return torch.cat(found)

    def _compute_loss(
        self,
        unwrapped_student: Any,  # noqa: ANN401
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sum of the kept rows' losses over the number of items; only these rows meet the LM heads."""
        weights, kept = inputs["position_weights"], inputs["kept"]
        tokens, weights = inputs["completion_ids"][kept], weights[kept]  # (n,), before the passes, as above
        if "student_states" in inputs:
            hidden = torch.cat(inputs["student_states"])
        else:
            hidden = self._student_hidden(unwrapped_student, inputs, kept)
        states = self._states(unwrapped_student, hidden, torch.cat(inputs["teacher_states"]))
        states = states._replace(student_head=states.student_head.in_float32())
        loss = states.student.float().sum() * 0  # where this rank keeps nothing, the graph is still whole
        entropy = torch.zeros((), device=loss.device)
        with without_autocast(loss.device):
            for tile in tiles(len(tokens), self.tile_positions):
                arguments = (states, tokens[tile], states.student[tile], tile)
                losses, entropies = checkpoint(
                    self._tile,
                    *arguments,
                    use_reentrant=False,
                    preserve_rng_state=False,  # nothing is drawn in it
                )
                loss = loss + (losses * weights[tile]).sum()
                entropy += entropies.detach().sum()
        items = weights.sum() if num_items_in_batch is None else num_items_in_batch
        return loss / items, entropy, kept.sum()

    def _tile(self, states: States, tokens: Tensor, hidden: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
        """Losses and student entropies of some rows, shape (rows,) each, nats."""
        logits = states.student_head(hidden)  # (rows, vocabulary)
        with torch.no_grad():
            taught = states.teacher_head(states.teacher[tile]).to(logits.device)
            logp = log_probabilities(logits)
            entropies = -(logp.exp() * logp).sum(-1)
        return self._position_loss(logits, taught, tokens), entropies


def _switch_off_dropout(model: torch.nn.Module) -> None:
    """Let a student in training be the one that is sampled, scored by probes, and judged.

    By every name that layers have for it, since some keep its probability beside `torch.nn.Dropout`; checkpointing of
    activations needs the training mode itself.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or isinstance(module, torch.nn.Dropout)):
                setattr(module, name, 0.0)


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
