"""Supervised fine-tuning on demonstrations: video, still and text in, reasoning out.

The SFT arm of SEED-Bench-R1 (arXiv 2503.24376; released sft.py and
qwen2vl_sft_config.yaml): the loss is the mean negative log-likelihood of the response
tokens and their <|im_end|>; prompt, pictures and padding have no part in it.

    folder = train_sft(Task("Qwen/Qwen2-VL-7B-Instruct", demonstrations, settings,
                            Sampling(), run))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.data.frame_store import question_media
from lib.data.prompts import messages
from lib.data.questions import Demonstration
from lib.data.video import Sampling
from lib.model import encoding, prefix
from lib.train import checkpoints, progress

# isort: split
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

RECORD = "sft_settings.json"
AT_LEAST_1 = ("steps", "batch_size", "gradient_accumulation", "save_every")
AT_LEAST_1 += ("max_tokens",)
IGNORED = -100  # label of a token that is not in the loss
END_OF_RESPONSE = "<|im_end|>"
# tokens: the mean over all learned tokens of a step, so that every token weighs the
# same. released: the mean over its responses of the mean over a response's tokens, so
# that every response does; the line end behind <|im_end|> is learned too, although no
# model ever has to write it (sft.py:111-130, and transformers 4.49, whose Qwen2-VL does
# not know how many tokens a step has).
LOSSES = ("tokens", "released")
LOGGED = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
LOGGED |= {"mean_token_accuracy": "token_accuracy"}


@dataclass(frozen=True)
class SFTSettings:
    """What decides the weights; in brackets the paper's values for all weights of 7B.
    Every step sees batch_size x gradient_accumulation demonstrations on each device."""

    steps: int  # optimizer steps (46: one epoch of 6k)
    batch_size: int  # demonstrations of one forward pass (1)
    gradient_accumulation: int  # forward passes of one step (16 on each of 8 GPUs)
    lr: float  # peak of AdamW's learning rate (2e-5; LoRA wants 10 to 100 times more)
    lora_rank: int  # 0 trains all weights, the vision tower included (0)
    lora_alpha: float
    seed: int  # adapter initialisation and order of the demonstrations (42)
    save_every: int  # steps between checkpoints
    max_tokens: int  # a longer demonstration is an error, nothing is cut off (8192)
    loss: str = "tokens"  # over what it is a mean, one of LOSSES (released)
    warmup_share: float = 0.1  # share of the steps in which lr rises linearly (0.1)
    schedule: str = "cosine"  # how lr falls to 0 afterwards (cosine)
    dtype: str = "float32"  # of frozen weights, and to compute in (bfloat16)
    quantize: bool = False  # frozen weights as NF4 (False)
    gradient_checkpointing: bool = False  # less memory, more time (True)

    def __post_init__(self) -> None:
        checkpoints.at_least(self, AT_LEAST_1)
        checkpoints.one_of(self, {"loss": LOSSES})


@dataclass(frozen=True)
class Task:
    """What is trained, on what, how, and where; `label` names the adapter."""

    model: str | Path  # folder of a checkpoint, or hub id
    demonstrations: Sequence[Demonstration]
    settings: SFTSettings
    sampling: Sampling
    run: Path
    label: str = "sft"

    def facts(self) -> dict:
        """Everything that decides the adapter, as plain JSON values."""
        lines = []
        for item in self.demonstrations:
            media = (item.video is not None, item.image is not None)
            told = f"{item.id}\n{media}\n{item.text}\n{item.response}\n"
            with encoding.naming(item):
                lines.append(told.encode())
        return checkpoints.facts(self, "demonstrations", lines)

    def order(self) -> list[int]:
        """Numbers of the demonstrations of all steps, over all devices, in order."""
        once = self.settings.batch_size * self.settings.gradient_accumulation
        count = self.settings.steps * once * checkpoints.processes()
        numbers = range(len(self.demonstrations))
        return checkpoints.training_order(numbers, count, self.settings.seed)


@dataclass
class ResponseCollator:
    """Demonstrations -> one right-padded batch with labels on the responses only."""

    processor: Callable
    sampling: Sampling
    max_tokens: int | None = None
    loss: str = "tokens"

    def __call__(self, demonstrations: Sequence[Demonstration]) -> dict:
        """The tensors of `encoding.encode` and labels [B, L]: -100 outside responses.
        Raises BadVideo for unusable media and ValueError for a demonstration that is
        longer than max_tokens or that `response_span` refuses; both name it."""
        talks = [self.conversation(item) for item in demonstrations]
        try:
            batch = encoding.encode(self.processor, talks)
        except ValueError:  # whose fault is it?
            for item, talk in zip(demonstrations, talks, strict=True):
                with encoding.naming(item):
                    encoding.encode(self.processor, [talk])
            raise
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for number, item in enumerate(demonstrations):
            length = int(batch["attention_mask"][number].sum())
            if self.max_tokens is not None and length > self.max_tokens:
                raise ValueError(
                    f"demonstration {item.id} has {length} tokens, more than max_tokens"
                    f" = {self.max_tokens}: raise max_tokens, or lower max_frames, "
                    "height or width; nothing is cut off"
                )
            ids = batch["input_ids"][number, :length]
            span = self.response_span(item, ids)
            labels[number, span] = ids[span]
        return {**batch, "labels": labels}

    def conversation(self, item: Demonstration) -> list[dict]:
        """The user turn with its media, and the response as the assistant's turn."""
        with encoding.naming(item):
            prompt = messages(item.text, *question_media(item, self.sampling))
        return [*prompt, {"role": "assistant", "content": item.response}]

    def response_span(self, item: Demonstration, ids: torch.Tensor) -> slice:
        """Where the response and its <|im_end|> stand in the unpadded ids [length]; for
        the released loss with the template's line end behind them. The tokens must be
        those the model would have to generate: a response that the tokenizer joins with
        the line end before it is a ValueError."""
        tokenizer = self.processor.tokenizer
        end_id = tokenizer.convert_tokens_to_ids(END_OF_RESPONSE)
        wanted = torch.tensor([*encoding.text_ids(tokenizer, item.response), end_id])
        end = int((ids == end_id).nonzero()[-1]) + 1
        span = slice(end - len(wanted), end)
        if not torch.equal(ids[span], wanted):
            raise ValueError(
                f"demonstration {item.id}: field response begins with white space that "
                "the tokenizer joins with the prompt's last token; strip it"
            )
        return span if self.loss == "tokens" else slice(span.start, len(ids))


class ResponseTrainer(checkpoints.ExactResume, SFTTrainer):
    """TRL's SFTTrainer for a Task, ready to start, with either of the two losses."""

    def __init__(self, task: Task):
        settings, label, run = task.settings, task.label, Path(task.run)
        self.mean_over, asked = settings.loss, task.demonstrations
        shown = {"loss": "loss", "token_accuracy": "token accuracy"}
        file = run / f"train_log_{label}.jsonl"
        log = progress.Progress(file, LOGGED, "SFT", shown)
        arguments = trainer_arguments(settings, run / "checkpoints" / label)
        given = (task, label, arguments, log, lambda logs: logs["loss"] > 0)
        parts = checkpoints.trainer_parts(*given)
        how = (task.sampling, settings.max_tokens, settings.loss)
        collator = ResponseCollator(parts["processing_class"], *how)
        super().__init__(
            # Only numbers pass through Arrow, which would fill absent media with None.
            train_dataset=Dataset.from_dict({"row": task.order()}),
            data_collator=lambda rows: collator([asked[i["row"]] for i in rows]),
            **parts,
        )
        if arguments.world_size > 1:
            prefix.see_once(self.model)

    def compute_loss(self, model, inputs, *given, **named):
        """The loss of a batch, positions as the kit's."""
        inputs = {**inputs, "position_ids": prefix.positions(model, inputs)}
        if self.mean_over == "tokens":
            return super().compute_loss(model, inputs, *given, **named)
        # Asked for its outputs, TRL would compute all logits in a second pass.
        found = []
        hook = model.register_forward_hook(lambda *call: found.append(call[-1]))
        super().compute_loss(model, inputs, *given, **named)
        hook.remove()
        loss = mean_of_means(found[0].log_probs, found[0].label_mask)
        return loss / self.current_gradient_accumulation_steps


def mean_of_means(logps: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """The released loss (LOSSES) of log-probabilities [B, L] where `learned` is 1."""
    return -((logps * learned).sum(-1) / learned.sum(-1)).mean()


def train_sft(task: Task) -> Path:
    """Train run/adapters/<label>, logged in train_log_<label>.jsonl; see `finished`."""
    return checkpoints.finished(task, task.label, RECORD, ResponseTrainer)


def trainer_arguments(settings: SFTSettings, folder: Path) -> SFTConfig:
    """The settings under TRL's names, and what the kit never varies."""
    return SFTConfig(
        **checkpoints.common_arguments(settings, folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        train_sampling_strategy="sequential",  # `Task.order` has shuffled
        gradient_checkpointing=settings.gradient_checkpointing,
        # The collator prepares, and nothing is truncated (TRL's default: 1024 tokens).
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
