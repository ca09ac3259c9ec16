"""The judge: asked once a question, believed in plain words, paid for knowingly."""

import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from made_run import predictions, write_run

from lib import chain, records
from lib.evaluate import evaluate, judge, tables
from lib.evaluate.judge import Judge, JudgeError, carry_out, plan
from lib.evaluate.readers import reasoning_of
from lib.run import __main__ as door

SECRET = "sk-very-secret-1234"


class Server(ThreadingHTTPServer):
    """A chat server on loopback: a rule for a judge, and what goes wrong on the way.
    `faults` come before the next answers, one a request: a status, "stall", the bytes
    of a reply or a text to say; `bodies` are those asked, `keys` the Authorization."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.keys, self.bodies = [], set(), []
        self.lock, self.released = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        serve = partial(self.serve_forever, 0.05)
        threading.Thread(target=serve, daemon=True).start()

    def close(self):
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server, key = self.server, self.headers.get("Authorization")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.bodies.append(body)
            server.keys.add(key)
        if fault == "stall":
            server.released.wait(20)
        elif isinstance(fault, bytes):
            self._send(200, fault)
        elif isinstance(fault, int):
            self._send(fault, json.dumps({"error": f"no, says {key}"}).encode())
        else:
            said = fault or verdict(body["messages"][0]["content"])
            self._send(200, reply(json.dumps(said)))

    def _send(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def reply(content):
    return f'{{"choices": [{{"message": {{"content": {content}}}}}]}}'.encode()


# A judge that reasons first, given too few tokens (vLLM with a reasoning parser).
CUT = b"""{"choices": [{"finish_reason": "length", "message":
    {"content": null, "reasoning_content": "Okay, the question asks"}}]}"""


def verdict(prompt):
    """Yes where the reasoning names the option that was answered."""
    reasoning = re.search("Reasoning: (.*)", prompt)[1]
    answer = re.search(r"Answer given: [A-E]\. (.*)", prompt)[1]
    return "Yes." if answer in reasoning else "no"


@pytest.fixture
def server(monkeypatch):
    """One that is asked one call at a time, by somebody who hardly waits."""
    monkeypatch.setattr(judge, "TIMEOUT", 2.0)  # a busy machine answers slowly
    monkeypatch.setattr(judge, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(judge, "AT_ONCE", 1)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", n=20, sets=("L1", "L3"))


@pytest.fixture
def asked():
    rows = [*predictions("base", "L1", 20, 0), *predictions("base", "L3", 20, 0)]
    next_step = partial(SimpleNamespace, text="What comes next?")
    return {row["id"]: next_step(options=tuple(row["options"])) for row in rows}


@pytest.fixture
def planned(server, run, asked):
    """A function that plans with so many calls at most."""
    return lambda most=None: plan(run, asked, Judge(server.url, "rule"), most)


def judged(run, label="grpo", name="L1"):
    return records.read_jsonl(run / f"judgements_{label}_{name}.jsonl")


def test_every_completion_is_judged_once_by_what_it_says(
    server, run, asked, planned, monkeypatch
):
    monkeypatch.setattr(judge, "AT_ONCE", 4)
    counts = carry_out(planned())
    rows = records.read_jsonl(run / "predictions_grpo_L1.jsonl")
    said = {row["id"]: row for row in judged(run)}
    assert len(said) == len(judged(run)) == 20
    for row in rows:
        text = judge.text(asked[row["id"]], row)
        expected = text is not None and verdict(text) == "Yes."
        assert said[row["id"]]["supports"] is expected
    assert any(row["first_letter"] is None for row in rows)  # for which nobody is asked
    assert counts["yes"] + counts["no"] == counts["calls"] == len(server.bodies)
    assert counts["failed"] == 0
    assert all(body["temperature"] == 0 for body in server.bodies)
    assert server.keys == {None}  # no key is sent that was not given


def test_the_judge_sees_neither_gold_nor_method(run, asked):
    for row in records.read_jsonl(run / "predictions_grpo_L1.jsonl")[:8]:
        text = judge.text(asked[row["id"]], row)
        assert reasoning_of(row["completion"]) in text
        assert "grpo" not in text.lower()
        other = {**row, "gold": "D", "correct": not row["correct"]}
        assert judge.text(asked[row["id"]], other) == text


def test_the_command_line(server, tmp_path, monkeypatch, capsys):
    from lib.mini import benchmark

    sizes = benchmark.Sizes(training=1, level=3, general=1)
    data = benchmark.write(tmp_path / "data", sizes)
    run, items = tmp_path / "run", tables.asked(data, data / "general", ["L1"])
    how = evaluate.EvalSettings("think", 48, 8)
    said = "<think>Next is {}.</think><answer>{}</answer>"
    for label in tables.METHODS:
        rows = [
            evaluate.row(item, how, said.format(item.answer, item.gold))
            for item in items.values()
        ]
        records.write_jsonl(run / f"predictions_{label}_L1.jsonl", rows)
    arguments = ["judge", str(run), "--url", server.url, "--model", "rule"]
    assert door.main(arguments) == 2
    assert "names no data_dir: give it by --data-dir" in capsys.readouterr().err
    arguments += ["--data-dir", str(data)]
    monkeypatch.setenv(judge.KEY, SECRET)
    assert door.main(arguments) == 2
    shown = capsys.readouterr()
    assert "up to 3 questions each of base, sft, grpo on L1" in shown.out
    assert "calls     9, each tried up to 3 times" in shown.out
    assert "--accept-cost" in shown.err
    assert not server.bodies and not list(run.glob("judgements_*"))
    assert door.main([*arguments, "--accept-cost"]) == 0
    assert "calls 9, yes 9" in capsys.readouterr().out
    assert server.keys == {f"Bearer {SECRET}"}
    assert door.main([*arguments, "--accept-cost"]) == 0
    assert len(server.bodies) == 9
    assert SECRET not in "".join(path.read_text() for path in run.iterdir())


def test_a_judge_goes_on_behind_the_analysis(server, run, asked, monkeypatch, capsys):
    """What was asked, in whole or in part, is no change of a stranger; and by it the
    pipeline sees that 04_eval has to run again (`left`)."""
    monkeypatch.setattr(records, "environment", dict)
    monkeypatch.setattr(tables, "asked", lambda *_: asked)
    for stage in ("04_eval", "05_analysis"):
        chain.close(run, stage)
    before = chain.left(run, "04_eval")
    arguments = ["judge", str(run), "--url", server.url, "--model", "rule"]
    arguments += ["--accept-cost", "--data-dir", "outputs/data/x"]
    assert door.main([*arguments, "--max-calls", "12"]) == 0
    server.faults += [None, None, 401]
    assert door.main(arguments) == 2
    assert door.main(arguments) == 0
    assert {row["id"] for row in judged(run, "sft", "L3")} < asked.keys()
    chain.verify(run, before="05_analysis")
    assert chain.left(run, "04_eval") != before
    assert "start the run again: 04_eval takes them up" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [500, 503, 429, "stall"])
def test_a_passing_fault_is_tried_again(server, planned, fault):
    server.faults = [fault, fault]
    todo = planned(6)
    assert carry_out(todo)["failed"] == 0
    assert len(server.bodies) == len(todo.calls) + 2


@pytest.mark.parametrize(
    ("fault", "attempts", "told"),
    [
        (500, 3, "answered 500"),
        ("stall", 3, "no reply: ReadTimeout"),
        (400, 1, "answered 400"),
        ("Yes and no", 1, "neither yes nor no: Yes and no"),
        (b"<html>busy</html>", 1, "no chat completion: <html>"),
        (b"[" * 100_000, 1, "no chat completion: [["),
        (reply("[" * 900 + "]" * 900), 1, "no chat completion: "),
        (reply("9" * 5000), 1, "no chat completion: "),
        (reply(f'"{"x" * 2_000_000}"'), 3, "no reply: DecodingError more than 1,000"),
        (reply(f'"{"<" * 900_000}"'), 1, "neither yes nor no: <<<"),
        (
            reply(r'"\u001b]0;t\u0007\u202e"'),
            1,
            r"neither yes nor no: \x1b]0;t\x07\u202e",
        ),
        (b"\x1b[2J\xc2\x9b0m", 1, r"no chat completion: \x1b[2J\x9b0m"),
        (reply('""'), 1, 'neither yes nor no: {"choices"'),
        (CUT, 1, "cut off, raise --max-tokens of lib.run judge: {"),
    ],
)
def test_a_failed_call_keeps_its_question_and_says_why_in_plain_words(
    server, planned, fault, attempts, told, monkeypatch
):
    monkeypatch.setenv(judge.KEY, SECRET)
    server.faults = [fault] * attempts
    todo = planned(6)
    assert carry_out(todo)["failed"] == 1
    rows = [row for path in todo.settings for row in records.read_jsonl(path)]
    (failed,) = (row for row in rows if row["error"] is not None)
    assert len(rows) == len(todo.jobs) and failed["supports"] is None
    assert failed["error"].startswith(told) and failed["error"].isprintable()
    assert len(failed["error"]) < 300 and SECRET not in json.dumps(rows)
    again = planned(6)
    assert [job.id for job in again.jobs] == [failed["id"]]
    assert carry_out(again)["failed"] == 0


@pytest.mark.parametrize(
    "said",
    [
        "<think>Yes or no? It is not.</think>\n\nNo.",
        *("**No.**", "```\nno\n```", '"No"', "No!", "`no`", "_No_"),
    ],
)
def test_a_judge_may_think_before_it_says_and_set_off_its_word(server, planned, said):
    server.faults = [said]
    todo = planned(6)
    carry_out(todo)
    first = records.read_jsonl(todo.calls[0].path)[0]
    assert first["supports"] is False and first["error"] is None


def test_a_judge_that_was_cut_off_is_asked_on_with_more_tokens(
    server, run, asked, planned
):
    server.faults = [CUT] * 1000
    with pytest.raises(JudgeError, match="raise --max-tokens"):
        carry_out(planned())
    server.faults, server.bodies[:] = [], []
    todo = plan(run, asked, Judge(server.url, "rule", 4096))
    assert f"{4096 * len(todo.calls):,} received at most" in str(todo)
    assert carry_out(todo)["failed"] == 0
    assert {body["max_tokens"] for body in server.bodies} == {4096}


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_ends_it_at_once(server, planned, status, monkeypatch):
    monkeypatch.setenv(judge.KEY, SECRET)
    server.faults = [status] * 50
    with pytest.raises(JudgeError, match=judge.KEY) as error:
        carry_out(planned())
    assert SECRET not in str(error.value)
    assert len(server.bodies) < 5


def test_a_judge_that_only_fails_is_given_up_and_goes_on_later(server, planned):
    server.faults = ["maybe"] * 1000
    todo = planned()
    with pytest.raises(JudgeError, match="10 calls in a row"):
        carry_out(todo)
    assert len(server.bodies) < len(todo.calls) / 2
    server.faults = []
    assert carry_out(planned())["failed"] == 0
    assert not planned().jobs


def test_a_killed_judge_goes_on_where_it_stopped(server, run, planned):
    carry_out(planned())
    path, before = run / "judgements_sft_L3.jsonl", len(server.bodies)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:9])
    todo = planned()
    assert len(todo.jobs) == len(lines) - 7
    carry_out(todo)
    assert len(server.bodies) == before + len(todo.calls)
    rows = judged(run, "sft", "L3")
    assert sorted(row["id"] for row in rows) == sorted(f"L3/{i}" for i in range(20))


def test_a_sample_is_the_same_for_all_and_within_a_larger_one(planned):
    small, large = planned(12), planned(60)
    by_method = [
        {job.id for job in small.jobs if f"_{label}_" in job.path.name}
        for label in tables.METHODS
    ]
    assert by_method[0] == by_method[1] == by_method[2] and len(by_method[0]) == 4
    assert len(small.jobs) == 12 and len(large.jobs) == 60
    assert set(small.jobs) < set(large.jobs)
    with pytest.raises(ValueError, match="6 calls are needed"):
        planned(5)


def test_judgements_of_another_judge_or_run_are_refused(server, run, asked, planned):
    carry_out(planned())
    with pytest.raises(ValueError, match=r"judge \('rule' there, 'other' now\)"):
        plan(run, asked, Judge(server.url, "other"))
    rows = records.read_jsonl(run / "predictions_sft_L1.jsonl")
    rows[0]["completion"] = "<think>Other.</think><answer>A</answer>"
    records.write_jsonl(run / "predictions_sft_L1.jsonl", rows)
    with pytest.raises(ValueError, match=r"predictions \("):
        planned()


@pytest.mark.parametrize(
    ("url", "model", "why"),
    [
        ("localhost:8000/v1", "m", "such as http"),
        ("http://host:port/v1", "m", "such as http"),
        ("http://user:word@host/v1", "m", judge.KEY),
        ("https://host/v1?key=word", "m", judge.KEY),
        ("http://host/v1", "", "not named"),
    ],
)
def test_a_judge_that_cannot_be_is_refused(url, model, why):
    with pytest.raises(JudgeError, match=why) as error:
        Judge(url, model)
    assert "word" not in str(error.value)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", " ", "\t"])
def test_the_end_of_the_line_is_no_part_of_a_key(
    server, run, planned, monkeypatch, end, capfd
):
    monkeypatch.setenv(judge.KEY, SECRET + end)
    server.faults = [400, "no idea"]
    carry_out(planned(6))
    assert server.keys == {f"Bearer {SECRET}"}
    assert not any(SECRET.encode() in path.read_bytes() for path in run.iterdir())
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("key", ["a\nb", "a\x1b[0m", "a\x7f", "schlüssel", "a\u202e"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    server, run, planned, monkeypatch, key
):
    monkeypatch.setenv(judge.KEY, key)
    before = sorted(run.iterdir())
    with pytest.raises(JudgeError) as caught:
        carry_out(planned(6))
    assert judge.KEY in str(caught.value) and key not in str(caught.value)
    assert server.bodies == [] and sorted(run.iterdir()) == before
