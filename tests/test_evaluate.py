"""Evaluation: greedy whatever the checkpoint says, one row a question, kill-proof."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib import evaluate as evaluation
from lib import models, paths, records
from lib.evaluate import EvalSettings, evaluate, metrics, partial_files, row
from lib.model import encoding
from lib.video import BadVideo, Sampling

SAMPLING = Sampling(max_frames=4, min_frames=4, fps=2.0, height=56, width=56)
SETTINGS = EvalSettings("think", max_new_tokens=12, batch_size=4)
CHILD = """
import pickle, sys
from lib import evaluate, models
folder, *arguments = pickle.load(open(sys.argv[1], "rb"))
model, processor = models.load_model(folder), models.load_processor(folder)
evaluate.evaluate(model, processor, *arguments)
"""


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return models.load_processor(tiny_checkpoint)


@pytest.fixture
def model(tiny_checkpoint):
    return models.load_model(tiny_checkpoint)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions_base_L1.jsonl"


def always(model, token):
    """Make `token` the most likely one at every position."""

    def raise_logit(module, inputs, logits):
        logits[..., token] += 1e4

    return model.lm_head.register_forward_hook(raise_logit)


def completions(rows):
    return [row["completion"] for row in rows]


def test_one_row_a_question_in_their_order(model, processor, tiny_questions, path):
    rows = evaluate(model, processor, tiny_questions, SETTINGS, SAMPLING, path)
    assert rows == records.read_jsonl(path)
    assert [row["id"] for row in rows] == [item.id for item in tiny_questions]
    assert [row["gold"] for row in rows] == [item.gold for item in tiny_questions]
    assert all(row["truncated"] and row["tokens"] == 12 for row in rows)
    assert len(set(completions(rows))) > 1
    assert not path.with_suffix(".partial.jsonl").exists()


def test_batches_answer_as_single_questions_do(model, processor, tiny_questions, path):
    """By an argmax over the whole sequence at every step: no cache, no padding."""
    rows = evaluate(model, processor, tiny_questions, SETTINGS, SAMPLING, path)
    alone = replace(SETTINGS, batch_size=1)
    for item, row_ in zip(tiny_questions, rows, strict=True):
        batch = evaluation.prepare_batch(processor, [item], alone, SAMPLING)
        assert row_["completion"] == argmax_completion(model, processor, batch.inputs)


def argmax_completion(model, processor, inputs):
    banned, start = (
        encoding.visual_token_ids(model.config),
        inputs["input_ids"].shape[1],
    )
    ids = inputs["input_ids"]
    for _ in range(SETTINGS.max_new_tokens):
        inputs["input_ids"] = ids
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["mm_token_type_ids"] = encoding.mm_token_type_ids(ids, model.config)
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[:, -1]
        logits[:, banned] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return processor.tokenizer.decode(ids[0, start:])


def test_no_field_is_inherited_from_the_checkpoint(
    model, processor, tiny_questions, tmp_path
):
    first = evaluate(
        model, processor, tiny_questions, SETTINGS, SAMPLING, tmp_path / "a.jsonl"
    )
    model.generation_config.update(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        top_p=0.9,
        repetition_penalty=1.8,
        no_repeat_ngram_size=1,
        bad_words_ids=[[token] for token in range(60, 360)],
        min_new_tokens=3,
        max_length=2,
        forced_eos_token_id=65,
        eos_token_id=70,
        num_beams=1,
    )
    second = evaluate(
        model, processor, tiny_questions, SETTINGS, SAMPLING, tmp_path / "b.jsonl"
    )
    assert second == first


def test_a_completion_never_holds_tokens_of_pictures(
    model, processor, tiny_questions, path
):
    for token in encoding.visual_token_ids(model.config):
        always(model, token)
    rows = evaluate(model, processor, tiny_questions, SETTINGS, SAMPLING, path)
    assert all(completions(rows))
    assert not any("vision_" in text or "_pad|>" in text for text in completions(rows))


def test_the_end_token_ends_and_is_no_truncation(
    model, processor, tiny_questions, path
):
    always(model, processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    rows = evaluate(model, processor, tiny_questions, SETTINGS, SAMPLING, path)
    assert {(r["completion"], r["tokens"], r["truncated"]) for r in rows} == {
        ("", 1, False)
    }


def test_cut_counts_up_to_the_end_token_and_ignores_padding(processor):
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(list(evaluation.END_TOKENS))
    text = tokenizer("<answer>B</answer>")["input_ids"]
    ended = [*text, ends[0], ends[1], ends[1]]
    assert evaluation.cut(tokenizer, ended, ends) == (
        "<answer>B</answer>",
        len(text) + 1,
        False,
    )
    assert evaluation.cut(tokenizer, text, ends) == (
        "<answer>B</answer>",
        len(text),
        True,
    )


@pytest.mark.parametrize("before", ["", "<think>x</think>"])
def test_special_tokens_are_no_part_of_an_answer(processor, before):
    """The released infer.py decodes without them, as every reward does."""
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(list(evaluation.END_TOKENS))
    said = f"{before}<answer><|vision_start|>B<|vision_end|></answer><|im_end|>"
    tokens = tokenizer(said)["input_ids"]
    text, count, truncated = evaluation.cut(tokenizer, tokens, ends)
    assert text == f"{before}<answer>B</answer>"
    assert (count, truncated) == (len(tokens), False)
    assert text == tokenizer.batch_decode([tokens], skip_special_tokens=True)[0]


def test_a_prompt_that_is_too_long_is_named(tiny_checkpoint, tiny_questions):
    processor = models.load_processor(tiny_checkpoint)
    long = replace(tiny_questions[2], text="word " * 500)
    processor.tokenizer.model_max_length = 400
    with pytest.raises(ValueError, match=r"question training/2: .* tokens"):
        evaluation.prepare_batch(
            processor, [*tiny_questions[:2], long], SETTINGS, SAMPLING
        )


def test_the_same_call_gives_the_same_bytes(
    model, processor, tiny_questions, path, tmp_path
):
    other = tmp_path / "other" / path.name
    for file in (path, other):
        evaluate(model, processor, tiny_questions, SETTINGS, SAMPLING, file)
    assert path.read_bytes() == other.read_bytes()


def test_killed_and_started_again_it_ends_as_if_undisturbed(
    tiny_checkpoint, model, processor, tiny_questions, path, tmp_path
):
    settings = replace(SETTINGS, max_new_tokens=150, batch_size=1)
    content = (tiny_questions, settings, SAMPLING)
    arguments = tmp_path / "arguments.pickle"
    arguments.write_bytes(pickle.dumps((tiny_checkpoint, *content, path)))
    partial = path.with_suffix(".partial.jsonl")
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-c", CHILD, str(arguments)]
    with subprocess.Popen(command, env=environment) as child:
        while child.poll() is None:
            if partial.exists() and partial.read_bytes().count(b"\n") >= 2:
                child.send_signal(signal.SIGKILL)
            time.sleep(0.01)
    assert child.returncode == -signal.SIGKILL
    assert not path.exists()

    evaluate(model, processor, *content, path)
    whole = tmp_path / "whole" / path.name
    evaluate(model, processor, *content, whole)
    assert path.read_bytes() == whole.read_bytes()


def test_a_torn_batch_is_answered_again_and_whole_ones_are_kept(
    model, processor, tiny_questions, path, tmp_path
):
    settings = replace(SETTINGS, batch_size=2)
    arguments = (model, processor, tiny_questions, settings, SAMPLING)
    whole = tmp_path / "whole" / path.name
    rows = {row["id"]: row for row in evaluate(*arguments, whole)}
    batches = evaluation.partition(tiny_questions, settings)
    in_batches = [rows[item.id] for batch in batches for item in batch]
    in_batches[0]["completion"] = "kept from before"
    partial = path.with_suffix(".partial.jsonl")
    records.write_jsonl(partial, in_batches[:3])
    partial.write_bytes(partial.read_bytes() + b'{"id": "training/')
    recorded = evaluation.settings_file(whole).read_bytes()
    evaluation.settings_file(path).write_bytes(recorded)

    resumed = evaluate(*arguments, path)
    undisturbed = records.read_jsonl(whole)
    differing = [
        new for new, old in zip(resumed, undisturbed, strict=True) if new != old
    ]
    assert [row["completion"] for row in differing] == ["kept from before"]


def test_rows_of_other_settings_are_refused_by_name(
    model, processor, tiny_questions, path
):
    arguments = (model, processor, tiny_questions)
    evaluate(*arguments, SETTINGS, SAMPLING, path)
    made = path.stat().st_mtime_ns
    evaluate(*arguments, SETTINGS, SAMPLING, path)
    assert path.stat().st_mtime_ns == made

    longer = replace(SETTINGS, max_new_tokens=13)
    with pytest.raises(ValueError, match="max_new_tokens was 12, is 13"):
        evaluate(*arguments, longer, SAMPLING, path)
    with pytest.raises(ValueError, match="sampling was"):
        evaluate(*arguments, SETTINGS, replace(SAMPLING, fps=1.0), path)
    with pytest.raises(ValueError, match="questions was '6 with"):
        evaluate(model, processor, tiny_questions[:5], SETTINGS, SAMPLING, path)
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    path.rename(path.with_suffix(".partial.jsonl"))
    with pytest.raises(ValueError, match="model was"):
        evaluate(*arguments, SETTINGS, SAMPLING, path)
    evaluation.settings_file(path).unlink()
    with pytest.raises(ValueError, match=r"settings\.json is missing"):
        evaluate(*arguments, SETTINGS, SAMPLING, path)


def test_an_unusable_video_stops_or_counts_as_wrong(
    model, processor, tiny_questions, path, tmp_path
):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    questions = [replace(tiny_questions[0], video=broken), *tiny_questions[1:]]
    with pytest.raises(BadVideo, match=r"broken\.mp4: .*\(question training/0\)"):
        evaluate(model, processor, questions, SETTINGS, SAMPLING, path)

    keep = replace(SETTINGS, on_bad_video="keep_as_wrong", batch_size=1)
    rows = evaluate(model, processor, questions, keep, SAMPLING, tmp_path / "k.jsonl")
    whole = evaluate(
        model, processor, tiny_questions, keep, SAMPLING, tmp_path / "w.jsonl"
    )
    assert rows[1:] == whole[1:]
    assert rows[0]["error"] == "broken.mp4 is empty (zero bytes)"
    assert rows[0]["completion"] == "" and not rows[0]["correct"]
    summary = metrics(rows)
    assert summary["n"] == 6 and summary["failed"] == pytest.approx(1 / 6)


@pytest.fixture
def on_copies(tiny_questions, tmp_path):
    """The questions, with clips and stills of their own."""

    def own(path):
        return path and Path(shutil.copy(path, tmp_path / path.name))

    return [
        replace(question, video=own(question.video), image=own(question.image))
        for question in tiny_questions
    ]


def test_a_question_that_failed_is_asked_again_when_its_file_has_come(
    model, processor, on_copies, path, tmp_path
):
    """With two a batch, whose other question is answered again as it was."""
    keep = replace(SETTINGS, on_bad_video="keep_as_wrong", batch_size=2)
    whole = evaluate(model, processor, on_copies, keep, SAMPLING, tmp_path / "w.jsonl")
    kept = on_copies[0].video.rename(tmp_path / "kept.mp4")
    rows = evaluate(model, processor, on_copies, keep, SAMPLING, path)
    assert rows[0]["error"] == "0.mp4 is missing"
    before = path.read_bytes()
    assert evaluate(model, processor, on_copies, keep, SAMPLING, path) == rows
    assert path.read_bytes() == before  # nothing has changed, nothing is asked
    on_copies[0].video.write_bytes(b"<html>not found</html>")  # another trouble
    rows = evaluate(model, processor, on_copies, keep, SAMPLING, path)
    assert "web page" in rows[0]["error"] and rows[1:] == whole[1:]
    shutil.copy(kept, on_copies[0].video)
    assert evaluate(model, processor, on_copies, keep, SAMPLING, path) == whole
    assert path.read_bytes() == (tmp_path / "w.jsonl").read_bytes()
    assert partial_files(path) == []


@pytest.mark.parametrize("kind", ["video", "image"])
def test_answers_on_other_pictures_are_refused(kind, model, processor, on_copies, path):
    evaluate(model, processor, on_copies, SETTINGS, SAMPLING, path)
    shutil.copy(getattr(on_copies[1], kind), getattr(on_copies[0], kind))
    with pytest.raises(ValueError, match=r"first training/0, were answered on other"):
        evaluate(model, processor, on_copies, SETTINGS, SAMPLING, path)


def test_two_questions_with_one_id_are_refused(model, processor, tiny_questions, path):
    twice = [*tiny_questions, tiny_questions[0]]
    with pytest.raises(ValueError, match="same id"):
        evaluate(model, processor, twice, SETTINGS, SAMPLING, path)


def test_the_next_batch_is_prepared_while_one_is_answered():
    begun = []

    def prepare(item):
        begun.append(item)
        return item * 10

    results = evaluation.one_ahead(prepare, [1, 2, 3])
    assert next(results) == 10
    assert list(results) == [20, 30]
    assert begun == [1, 2, 3]


def test_rows_read_answers_under_both_rules(tiny_questions):
    question = tiny_questions[1]  # gold B
    tagged = row(question, SETTINGS, "<answer>B. stir</answer>", 9)
    assert tagged["correct"] and tagged["correct_lenient"] and tagged["parsed"]
    bold = row(question, SETTINGS, "<answer>**B**</answer>", 9)
    assert not bold["correct"] and bold["correct_lenient"] and not bold["parsed"]
    bare = row(question, SETTINGS, "B", 2)
    assert bare["first_letter"] is None and not bare["correct"]
    direct = row(question, replace(SETTINGS, style="direct"), "B", 2)
    assert direct["first_letter"] == "B" and direct["correct"]
    for said in ("<answer>B</answer>", "<Answer>b", "<think>x</think>B"):
        direct = row(question, replace(SETTINGS, style="direct"), said, 9)
        assert direct["first_letter"] is None and direct["correct_lenient"]
    article = replace(question, options=("fly", *question.options[1:]))
    assert row(article, SETTINGS, "<answer>A fly</answer>", 9)["lenient"] == "A"
    none = row(question, SETTINGS, "<answer>E</answer>", 9)  # has four options
    assert none["first_letter"] is None


def test_metrics_by_hand(tiny_questions):
    def answered(number, completion, **changes):
        question = replace(tiny_questions[number], **changes)
        return row(question, SETTINGS, completion, 10, truncated=not completion)

    rows = [
        answered(0, "<answer>A</answer>", domain="Work", duration_group=15),
        answered(1, "<answer>(B)</answer>", domain="Work", duration_group=15),
        answered(2, "<answer>A</answer>", domain="Hobbies", duration_group=600),
        answered(3, "", domain="Hobbies", duration_group=600),
    ]
    assert metrics(rows) == {
        "n": 4,
        "accuracy": 0.25,
        "accuracy_lenient": 0.5,
        "parse_failure": 0.5,
        "parse_failure_lenient": 0.25,
        "truncated": 0.25,
        "failed": 0.0,
        "mean_tokens": 10.0,
        "by_domain": {
            "Hobbies": {"n": 2, "accuracy": 0.0, "accuracy_lenient": 0.0},
            "Work": {"n": 2, "accuracy": 0.5, "accuracy_lenient": 1.0},
        },
        "by_duration_group": {
            "15": {"n": 2, "accuracy": 0.5, "accuracy_lenient": 1.0},
            "600": {"n": 2, "accuracy": 0.0, "accuracy_lenient": 0.0},
        },
    }
    with pytest.raises(ValueError, match="no rows"):
        metrics([])


@pytest.mark.parametrize(
    "wrong",
    [{"style": "both"}, {"on_bad_video": "skip"}, {"batch_size": 0}],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)


def test_batches_of_several_threads_give_the_rows_of_one(
    model, processor, tiny_questions, tmp_path
):
    settings = EvalSettings("think", max_new_tokens=6, batch_size=1)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        file = tmp_path / f"{threads}.jsonl"
        torch.set_num_threads(threads)
        try:
            evaluate(model, processor, tiny_questions, settings, SAMPLING, file)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        found.append(file.read_bytes())
    assert found[0] == found[1]


def test_an_error_in_a_thread_ends_the_evaluation():
    def work(item):
        if item == 2:
            raise BadVideo("clip.mp4", "is broken")
        return item

    results = evaluation.on_each_core(work, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(BadVideo):
        next(results)
