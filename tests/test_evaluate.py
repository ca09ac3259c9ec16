"""Evaluation: greedy whatever the checkpoint says, one row a question."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib import records
from lib.analysis.compare import metrics
from lib.analysis.stats import wilson_interval
from lib.data.video import BadVideo
from lib.evaluate import evaluate as evaluation
from lib.evaluate import perception
from lib.evaluate.evaluate import Asking, EvalSettings, evaluate, row
from lib.model import encoding, models, rollouts
from tests.trainings import SAMPLING, followed

SETTINGS = EvalSettings("think", max_new_tokens=12, batch_size=4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions_base_L1.jsonl"


@pytest.fixture
def ask(model, processor, tiny_questions, path):
    """A function that asks; its rows are also in `path`."""

    def asked(questions=tiny_questions, settings=SETTINGS, sampling=SAMPLING, **more):
        given = (model, processor, questions, settings, sampling)
        return evaluate(*given, **{"path": path} | more)

    return asked


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, processor, tiny_questions, tmp_path_factory):
    """The file of an undisturbed call."""
    path = tmp_path_factory.mktemp("whole") / "predictions_base_L1.jsonl"
    model = models.load_model(tiny_checkpoint)
    evaluate(model, processor, tiny_questions, SETTINGS, SAMPLING, path)
    return path


def always(model, token):
    """Make `token` the most likely one at every position."""

    def raise_logit(module, inputs, logits):
        logits[..., token] += 1e4

    return model.lm_head.register_forward_hook(raise_logit)


def test_one_row_a_question_in_their_order(whole, tiny_questions):
    rows = records.read_jsonl(whole)
    assert [row["id"] for row in rows] == [item.id for item in tiny_questions]
    assert [row["gold"] for row in rows] == [item.gold for item in tiny_questions]
    assert all(row["truncated"] and row["tokens"] == 12 for row in rows)
    assert len({row["completion"] for row in rows}) > 1


@torch.no_grad()
def plain_answer(asking, question, begun=()):
    """Its tokens behind `begun`, by an argmax over the whole sequence at every step: no
    cache, no padding."""
    model, (inputs,) = asking.model, asking.prepare([question]).inputs
    banned = encoding.visual_token_ids(model.config)
    said = torch.tensor(begun, dtype=torch.long)
    for _ in range(asking.settings.max_new_tokens):
        whole = followed(model, inputs, said)
        logits = model(**whole, use_cache=False).logits[0, -1]
        logits[banned] = -torch.inf
        said = torch.cat([said, logits.argmax()[None]])
    return said[-asking.settings.max_new_tokens :].tolist()


def test_batches_answer_as_single_questions_do(model, processor, tiny_questions, whole):
    asking = Asking(model, processor, SETTINGS, SAMPLING)
    for item, said in zip(tiny_questions, records.read_jsonl(whole), strict=True):
        tokens = plain_answer(asking, item)
        assert said["completion"] == processor.tokenizer.decode(tokens)


def test_a_window_of_batches_answers_as_each_batch_does(
    model, processor, tiny_questions
):
    """As on a GPU: the next batch's questions take the places of those that end."""
    settings = replace(SETTINGS, batch_size=2, on_bad_video="keep_as_wrong")
    bad = replace(tiny_questions[1], video=tiny_questions[1].video.with_name("no.mp4"))
    asking, window = Asking(model, processor, settings, SAMPLING), []
    for asked in ([tiny_questions[0], bad], [bad], list(tiny_questions[2:6])):
        window.append(asking.see(asking.prepare(asked)))
    with rollouts.generating(model):
        together = asking.answer(window)
        apart = [asking.answer([batch])[0] for batch in window]
    assert together == apart
    assert [row["error"] is None for row in together[0]] == [True, False]
    assert [len(rows) for rows in together] == [2, 1, 4]


def test_no_field_is_inherited_from_the_checkpoint(model, ask, whole, path):
    """And the same call gives the same bytes."""
    model.generation_config.update(
        **{"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.9},
        **{"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "num_beams": 1},
        **{"min_new_tokens": 3, "max_length": 2, "forced_eos_token_id": 65},
        bad_words_ids=[[token] for token in range(60, 360)],
        eos_token_id=70,
    )
    ask()
    assert path.read_bytes() == whole.read_bytes()


def test_a_completion_never_holds_tokens_of_pictures(model, ask):
    for token in encoding.visual_token_ids(model.config):
        always(model, token)
    texts = [row["completion"] for row in ask()]
    assert all(texts)
    assert not any("vision_" in text or "_pad|>" in text for text in texts)


def test_the_end_token_ends_and_is_no_truncation(model, processor, ask):
    always(model, processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    found = {(row["completion"], row["tokens"], row["truncated"]) for row in ask()}
    assert found == {("", 1, False)}


@pytest.mark.parametrize(
    ("said", "text", "left"),
    [
        ("<answer>B</answer>", "<answer>B</answer>", None),
        ("<answer>B</answer><|im_end|>", "<answer>B</answer>", 0),
        ("<answer>B<|im_end|><|endoftext|><|endoftext|>", "<answer>B", 2),  # padding
        ("x<answer><|vision_start|>B<|im_end|>", "x<answer>B", 0),
    ],
)
def test_cut_ends_before_the_end_token_and_leaves_out_special_ones(
    processor, said, text, left
):
    """The released infer.py decodes without them, as every reward does."""
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(list(evaluation.END_TOKENS))
    tokens = tokenizer(said)["input_ids"]
    expected = text, len(tokens) - (left or 0), left is None
    assert evaluation.cut(tokenizer, tokens, ends) == expected


def test_a_prompt_that_is_too_long_is_named(tiny_checkpoint, tiny_questions):
    processor = models.load_processor(tiny_checkpoint)
    long = replace(tiny_questions[2], text="word " * 500)
    processor.tokenizer.model_max_length = 400
    asking = Asking(None, processor, SETTINGS, SAMPLING)
    with pytest.raises(ValueError, match=r"question training/2: .* tokens"):
        asking.prepare([*tiny_questions[:2], long])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("max_new_tokens", {"settings": replace(SETTINGS, max_new_tokens=13)}),
        ("sampling", {"sampling": replace(SAMPLING, fps=1.0)}),
        ("questions", {"questions": []}),
        ("shown", {"shown": perception.Shown("shuffled", 0)}),
        ("model", {}),
    ],
)
def test_rows_of_other_settings_are_refused_by_name(model, ask, whole, key, change):
    with torch.no_grad():
        model.lm_head.weight.add_(0.01 * (key == "model"))
    with pytest.raises(ValueError, match=rf"other settings: {key} \(") as refused:
        ask(path=whole, **change)
    assert str(refused.value).count(" there, ") == 1


@pytest.fixture
def on_copies(tiny_questions, tmp_path):
    """The questions, with clips and stills of their own."""

    def own(path):
        return path and Path(shutil.copy(path, tmp_path / path.name))

    return [
        replace(question, video=own(question.video), image=own(question.image))
        for question in tiny_questions
    ]


def test_a_bad_clip_stops_or_counts_as_wrong_until_its_file_has_come(
    ask, on_copies, path, tmp_path
):
    """With two a batch, whose other question is answered again as it was."""

    def answered(on_bad_video, path=path):
        how = replace(SETTINGS, on_bad_video=on_bad_video, batch_size=2)
        return ask(on_copies, how, path=path)

    whole = answered("keep_as_wrong", tmp_path / "whole.jsonl")
    clip = on_copies[0].video
    kept = clip.rename(tmp_path / "kept.mp4")
    with pytest.raises(BadVideo, match=r"0\.mp4: .*\(question training/0\)"):
        answered("raise", tmp_path / "stopped.jsonl")
    rows = answered("keep_as_wrong")
    assert rows[0]["error"] == "0.mp4 is missing" and rows[1:] == whole[1:]
    assert rows[0]["completion"] == "" and not rows[0]["correct"]
    assert metrics(rows)["n"] == 6 and metrics(rows)["failed_videos"] == 1
    before = path.read_bytes()
    assert answered("keep_as_wrong") == rows
    assert path.read_bytes() == before  # nothing has changed, nothing is asked
    clip.write_bytes(b"<html>not found</html>")  # another trouble
    rows = answered("keep_as_wrong")
    assert "web page" in rows[0]["error"] and rows[1:] == whole[1:]
    shutil.copy(kept, clip)
    assert answered("keep_as_wrong") == whole
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["video", "image"])
def test_answers_on_other_pictures_are_refused(kind, ask, on_copies):
    ask(on_copies)
    shutil.copy(getattr(on_copies[1], kind), getattr(on_copies[0], kind))
    with pytest.raises(ValueError, match=r"first training/0, were answered on other"):
        ask(on_copies)


def test_the_next_batch_is_prepared_while_one_is_answered():
    begun = []

    def prepare(item):
        begun.append(item)
        return item * 10

    results = evaluation.one_ahead(prepare, [1, 2, 3])
    assert next(results) == 10 and 3 not in begun
    assert list(results) == [20, 30] and begun == [1, 2, 3]


@pytest.mark.parametrize(
    ("style", "said", "first", "lenient"),
    [
        ("think", "<answer>**B**</answer>", None, "B"),
        ("think", "<answer>E</answer>", None, None),  # has four options
        ("direct", "B", "B", "B"),
        ("direct", "<answer>B</answer>", None, "B"),
        ("direct", "<Answer>b", None, "B"),
        ("direct", "<think>x</think>B", None, "B"),
    ],
)
def test_rows_read_answers_under_both_rules(
    tiny_questions, style, said, first, lenient
):
    question = replace(tiny_questions[1], options=("fly", "stir", "cut", "wash"))
    found = row(question, replace(SETTINGS, style=style), said, 9)  # gold B
    assert (found["first_letter"], found["lenient"]) == (first, lenient)
    assert found["parsed"] is (first is not None) and found["correct"] is (first == "B")
    assert found["correct_lenient"] is (lenient == "B")


def test_metrics_by_hand(tiny_questions):
    rows = []
    for item, said in zip(tiny_questions, ("A", "(B)", "A", None), strict=False):
        if said:
            rows.append(row(item, SETTINGS, f"<answer>{said}</answer>", 10))
        else:  # a failed question stays in every denominator
            rows.append(row(item, SETTINGS, "", 10, error="its clip is missing"))
    found = metrics(rows)
    wanted = {
        **{"n": 4, "accuracy": 0.25, "accuracy_lenient": 0.5},
        **{"parse_failure": 0.5, "parse_failure_lenient": 0.25},
        **{"truncated": 0.0, "failed_videos": 1},
        **{"mean_tokens": 10.0, "chance": 0.25},
    }
    for end, right in (("", 1), ("_lenient", 2)):
        wanted[f"low{end}"], wanted[f"high{end}"] = wilson_interval(right, 4)
    assert found == wanted
    with pytest.raises(ValueError, match="no rows"):
        metrics([])


@pytest.mark.parametrize("wrong", [{"on_bad_video": "skip"}, {"batch_size": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)


def test_batches_of_several_threads_give_the_rows_of_one(ask, whole, path):
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)
    try:
        ask()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert path.read_bytes() == whole.read_bytes()


def test_an_error_in_a_thread_ends_the_evaluation():
    results = evaluation.on_each_core(lambda item: 6 // (3 - item), range(5))
    assert [next(results), next(results), next(results)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
