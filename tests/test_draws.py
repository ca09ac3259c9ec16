"""Several answers to a question, answers that were begun, and what is made of them."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import chain, records
from lib.analysis import sampled
from lib.data import training_sets
from lib.evaluate import draws, evaluate
from lib.evaluate.evaluate import EvalSettings
from lib.methods import LABELS
from lib.model import models
from lib.run import export
from lib.train import grpo, rewards, sft
from tests.test_evaluate import plain_answer
from tests.trainings import GRPO, SAMPLING, SFT, move_adapter, weights_of

# isort: split
import peft

HOW = EvalSettings("think", max_new_tokens=6, batch_size=2)


def drawn(model, processor, asked, path, count=3, seed=0, exact=None):
    return draws.draw(model, processor, asked, HOW, count, seed, SAMPLING, path, exact)


def test_draws_are_resumed_to_the_same_rows(model, processor, tiny_questions, tmp_path):
    path = tmp_path / "draws_base_L1.jsonl"
    rows = drawn(model, processor, tiny_questions, path)
    assert [row["id"] for row in rows] == [q.id for q in tiny_questions]
    assert all(len(row["completions"]) == len(row["right"]) == 3 for row in rows)
    assert len({tuple(row["completions"]) for row in rows}) == len(rows)
    assert all(row["said"] is None and row["kl"] is None for row in rows)
    whole = path.read_bytes()
    partial = path.with_suffix(".partial.jsonl")
    partial.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    path.unlink()
    torch.manual_seed(99)  # what was drawn before does not matter
    drawn(model, processor, tiny_questions, path)
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="rows of other settings"):
        drawn(model, processor, tiny_questions, path, seed=1)
    other = drawn(model, processor, tiny_questions, tmp_path / "other.jsonl", seed=1)
    assert [r["completions"] for r in other] != [r["completions"] for r in rows]


def test_kl_is_zero_for_a_fresh_adapter_and_grows(
    model, processor, tiny_questions, tmp_path
):
    policy = peft.get_peft_model(model, models.lora_config(4, 8.0)).eval()
    rows = drawn(policy, processor, tiny_questions[:2], tmp_path / "a.jsonl", count=4)
    assert all(abs(row["kl"]) < 1e-4 for row in rows)
    move_adapter(policy, 0.1)
    rows = drawn(policy, processor, tiny_questions, tmp_path / "b.jsonl", count=16)
    assert np.mean([row["kl"] for row in rows]) > 0.05


def test_a_failed_question_counts_with_no_right_answer(
    model, processor, tiny_questions, tmp_path
):
    broken = replace(tiny_questions[0], video=tmp_path / "missing.mp4")
    how = replace(HOW, on_bad_video="keep_as_wrong")
    given = ([broken, tiny_questions[2]], how, 3, 0, SAMPLING, tmp_path / "x.jsonl")
    first, second = draws.draw(model, processor, *given)
    assert first["right"] == [0, 0, 0] and "missing.mp4" in first["error"]
    assert second["error"] is None


def test_right_and_true_are_told_apart(tiny_questions):
    q = tiny_questions[1]
    texts = [
        "<think>yes</think><answer>B</answer>",
        "<think>no</think><answer>B</answer>",
    ]
    texts += ["<think>yes</think><answer>A</answer>", "B"]

    def exact(row, reasoning):
        assert tuple(row["options"]) == q.options and row["gold"] == "B"
        return {"progress": "right" if reasoning == "yes" else "wrong"}

    row = draws.row(q, texts, exact)
    assert row["right"] == [1, 1, 0, 0]
    said = [own["progress"] for own in row["said"]]
    assert said == ["right", "wrong", "right", "wrong"]


def test_a_reasoning_that_was_cut_off_is_judged_as_in_greedy_answers(tiny_questions):
    texts = ["<think> I see a", "<answer>A</answer>"]
    row = draws.row(tiny_questions[0], texts, lambda facts, thought: thought)
    assert row["said"] == ["I see a", None]


def test_pass_at_k_is_that_of_all_ways_to_choose():
    for n, c in itertools.product(range(1, 7), range(7)):
        for k in range(1, n + 1) if c <= n else ():
            ways = list(itertools.combinations([1] * c + [0] * (n - c), k))
            share = sum(map(any, ways)) / len(ways)
            assert math.isclose(sampled.pass_at(k, n, c), share)


def test_a_guess_counts_by_the_letter_and_not_by_the_truth(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"L1/{i}", "right": (rng.random(16) < 0.25).astype(int).tolist()}
        | {
            "completions": [""] * 16,
            "said": [{"progress": "wrong"}] * 16,
            "kl": 0.5 + i % 2,
        }
        for i in range(300)
    ]
    records.write_jsonl(tmp_path / "draws_sft_L1.jsonl", rows)
    records.write_jsonl(tmp_path / "draws_base_training.jsonl", rows)
    found = sampled.table(tmp_path, {row["id"]: row["id"] for row in rows}, samples=200)
    assert {row["model"] for row in found} == {"sft"}
    by = {(row["counts"], row["k"]): row for row in found}
    assert sorted(k for _, k in by) == sorted([1, 2, 4, 8, 16] * 2)
    assert by["letter", 1]["pass"] == pytest.approx(0.25, abs=0.02)
    assert by["letter", 8]["pass"] == pytest.approx(1 - 0.75**8, abs=0.02)
    assert by["letter", 8]["low"] < 1 - 0.75**8 < by["letter", 8]["high"]
    assert by["truth", 16]["pass"] == 0
    assert by["letter", 1]["kl"] == pytest.approx(1.0)
    text = sampled.markdown(found)
    assert "right letter and true progress" in text and "pass@16" in text
    lost = [{"a": "sft", "b": "base", "difference": -0.1, "low": -0.2, "high": 0.0}]
    nearer = [row | {"set": "L3", "kl": row["kl"] and -0.02} for row in found]
    moved = sampled.moved_markdown([*found, *nearer], lost)
    assert "KL on L1 | KL on L3 | general" in moved and "1.00 | −0.02 | −10.0" in moved


def test_equal_draws_of_a_few_questions_leave_an_interval(tmp_path):
    rows = [{"id": f"L1/{i}", "right": [1], "said": None, "kl": None} for i in range(8)]
    records.write_jsonl(tmp_path / "draws_base_L1.jsonl", rows)
    videos = {row["id"]: row["id"] for row in rows}
    (found,) = sampled.table(tmp_path, videos, samples=200)
    assert found["low"] < found["pass"] == found["high"] == 1


def test_draws_of_questions_on_one_video_are_resampled_together(tmp_path):
    rows = [
        {"id": f"L1/{i}", "right": [i // 10 % 2], "said": None, "kl": None}
        for i in range(200)  # ten questions a video, all right or all wrong
    ]
    records.write_jsonl(tmp_path / "draws_base_L1.jsonl", rows)
    (alone,), (together,) = (
        sampled.table(tmp_path, {f"L1/{i}": i // size for i in range(200)}, samples=500)
        for size in (1, 10)
    )
    assert together["pass"] == alone["pass"] == 0.5
    widths = [own["high"] - own["low"] for own in (alone, together)]
    assert widths[1] > 2 * widths[0]


def test_a_decision_is_judged_only_where_an_answer_comes_to_it(tmp_path):
    def said(progress, follows, consistent, count="absent"):
        names = ("progress", "count", "follows", "consistent")
        return dict(zip(names, (progress, count, follows, consistent), strict=True))

    hasty, seen = said("absent", "absent", "no"), said("right", "yes", "yes", "right")
    lost, noise = said("wrong", "no", "yes"), said(*["unreadable"] * 4)
    rows = [
        {"id": f"L3/{i}", "right": [1] * len(own), "said": own, "kl": None}
        for i, own in enumerate([[hasty, noise], [hasty, seen], [lost, seen]])
    ]
    records.write_jsonl(tmp_path / "draws_base_L3.jsonl", rows)
    found = sampled.decisions(tmp_path, samples=500, seed=0)
    by = [(row["answers"], row["share"]) for row in found]
    assert by == [(6, 3 / 6), (3, 2 / 3), (2, 1.0), (3, 2 / 3), (5, 3 / 5)]
    assert all(0 <= row["low"] <= row["share"] <= row["high"] <= 1 for row in found)
    assert found[0]["low"] < 0.2 and found[2]["low"] == 1  # all counts are right
    text = sampled.decisions_markdown([*found[:4], found[4] | {"answers": 31}])
    assert "| gives that step's letter | L3 | 60.0 [" in text
    assert "in full" not in text, "two answers tell nothing"
    records.write_jsonl(tmp_path / "draws_base_L3.jsonl", [rows[0] | {"said": None}])
    assert sampled.decisions(tmp_path, samples=500, seed=0) == []


def test_an_answer_that_was_begun_goes_on_as_if_the_model_had_begun_it(
    model, processor, tiny_questions, tmp_path
):
    begun, question = "cut the onion", tiny_questions[0]
    how, path = replace(HOW, begun=begun), tmp_path / "begun.jsonl"
    (row,) = evaluate.evaluate(model, processor, [question], how, SAMPLING, path)
    asking = evaluate.Asking(model, processor, HOW, SAMPLING)
    begin = processor.tokenizer.encode(begun)
    tokens, ends = plain_answer(asking, question, begin), asking.decoding(0.0).end_ids
    said, count, _ = evaluate.cut(processor.tokenizer, tokens, ends)
    assert row["completion"] == begun + said and said
    assert row["tokens"] == count + len(begin)
    assert records.read_json(tmp_path / "begun.settings.json")["begun"] == begun
    evaluate.evaluate(model, processor, [question], HOW, SAMPLING, tmp_path / "x.jsonl")
    assert "begun" not in records.read_json(tmp_path / "x.settings.json")


def test_the_best_prefix_is_that_of_most_right_answers(
    model, processor, tiny_questions, tmp_path
):
    same = [replace(q, gold="B", answer=q.options[1]) for q in tiny_questions]
    given = (HOW, "<answer>A</answer> | <answer>B</answer>|So", SAMPLING, tmp_path)
    best = evaluate.best_prefix(model, processor, same, *given)
    assert best == "<answer>B</answer>"
    record = records.read_json(tmp_path / "answer_prefixes.json")
    assert record["right"]["<answer>B</answer>"] == 6 == record["questions"]
    assert record["right"]["<answer>A</answer>"] == 0
    assert record["best"] == best and len(record["right"]) == 3
    with pytest.raises(ValueError, match="set holdout_share"):
        evaluate.best_prefix(model, processor, [], *given)


def test_own_right_answers_are_what_rejection_sampling_keeps(tiny_questions):
    rows = [
        {"id": q.id, "completions": ["a", "b", "c"], "right": [i % 2, 0, 1]}
        for i, q in enumerate(tiny_questions)
    ]
    kept = training_sets.own_right_answers(tiny_questions[:2], rows)
    assert [(item.id, item.response) for item in kept] == [
        ("training/0#2", "c"), ("training/1#0", "a"), ("training/1#2", "c")
    ]  # fmt: skip
    assert kept[0].video == tiny_questions[0].video
    assert training_sets.lessons("own", [], [], kept) == {"rft": kept}


def test_a_coin_pays_equal_answers_unlike_and_the_same_again(make_trainer):
    question = type("Q", (), {"id": "training/1"})
    named = [f"{step}/{number}" for step in range(50) for number in range(8)]
    tossed = [rewards.coin("same", question, name) for name in named]
    assert 0.4 < np.mean(tossed) < 0.6
    assert tossed[:8] == [rewards.coin("other", question, f"0/{n}") for n in range(8)]
    trainer = make_trainer(rewards={"coin": rewards.coin, "accuracy": rewards.accuracy})
    rows = [{"step": 3, "rollout": n, "text": "same"} for n in range(8)]
    asked = next(iter(trainer.questions.values()))
    for _ in range(2):
        trainer.measure([grpo.Group(asked, None, [], rows, {})])
        paid = [row["rewards"]["coin"] for row in rows]
        assert paid == [rewards.coin("", asked, f"3/{n}") for n in range(8)]
        assert {row["rewards"]["accuracy"] for row in rows} == {0.0}
    assert len({*paid}) == 2


def test_grpo_goes_on_from_sft_and_is_loaded_on_it(
    tiny_checkpoint, demonstrations, make_task, tiny_questions, tmp_path
):
    run = tmp_path / "run"
    assert export.start(run, "", tiny_checkpoint, "float32") == tiny_checkpoint
    with pytest.raises(FileNotFoundError, match="train it first"):
        export.start(run, "sft", tiny_checkpoint, "float32")
    learned = replace(SFT, steps=2, lr=0.05)
    sft.train_sft(sft.Task(tiny_checkpoint, demonstrations, learned, SAMPLING, run))
    start = export.start(run, "sft", tiny_checkpoint, "float32")
    (run / "adapters/sft/README.md").write_text("as export leaves it")
    assert export.start(run, "sft", tiny_checkpoint, "float32") == start
    own = replace(GRPO, steps=2)
    task = make_task({"format": rewards.format_reward}, own, run)
    grpo.train(replace(task, model=start))
    whole = models.load_trained(tiny_checkpoint, run / "adapters" / "grpo")
    under = whole.get_base_model().state_dict()
    merged = models.load_model(start).state_dict()
    plain = models.load_model(tiny_checkpoint).state_dict()
    moved = [k for k in merged if not torch.equal(merged[k], plain[k])]
    assert moved and all("_proj" in name for name in moved)
    for name in moved:
        layer = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(under[layer], merged[name])
    # The SFT adapter itself stays on the plain base.
    again = models.load_trained(tiny_checkpoint, run / "adapters" / "sft")
    name = moved[0].replace(".weight", ".base_layer.weight")
    assert torch.equal(again.get_base_model().state_dict()[name], plain[moved[0]])
    assert len(weights_of(run / "adapters" / "grpo")) and "rft" in LABELS
    chain.close(run, "03_grpo", model=str(tiny_checkpoint), questions=6)
    card = export.model_card(run / "adapters" / "grpo")
    assert f"`{tiny_checkpoint}` after SFT, then GRPO:" in card
