"""A language model as judge: does the reasoning support the answer that was given?

GRPO-CARE (arXiv 2506.16141, table 3) reports the share of "yes" of GPT-4.1 to "whether
the reasoning sufficiently supports the answer", 57.9 % after GRPO. Its prompt is not
released: `PROMPT` is this kit's own, and its numbers stand beside that one, not in its
place. The judge sees no video, no gold letter, and not which method answered.

Any server that speaks POST /v1/chat/completions will do (vLLM, llama.cpp, a paid one):

    $ python -m lib.run judge outputs/mini --url http://127.0.0.1:8000/v1 \\
          --model Qwen2.5-72B-Instruct --max-calls 600

Nothing is asked before `--accept-cost`. A server that wants a key gets the one in the
environment variable JUDGE_API_KEY; it is written nowhere. Answers are kept one by one
in judgements_<method>_<set>.jsonl; the same command goes on where it stopped, and asks
those again that failed. A call that fails keeps its question in the denominator.
(huggingface_hub's client would read answers of any length, and send the user's own hub
token to any address.)"""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx2
from tqdm import tqdm

from lib import chain, paths, records, run_files
from lib.data.prompts import LETTERS, option_lines
from lib.data.questions import Question
from lib.doors import Door
from lib.evaluate import resume, tables
from lib.evaluate.readers import reasoning_of
from lib.markup import shown

KEY = "JUDGE_API_KEY"
PROMPT = """\
A model watched a video and answered a multiple-choice question about it. You see the \
question, its reasoning and its answer, but not the video. Whether the answer is right \
is not your concern. Judge one thing: does the reasoning sufficiently support the \
answer?

Say yes if a reader who believes every statement of the reasoning would choose this \
answer because of it. Say no if the reasoning leads to another option, leads to none, \
or contradicts itself.

Question: {question}
{options}

Reasoning: {reasoning}

Answer given: {answer}

Does the reasoning sufficiently support the answer? Say only yes or no."""
TIMEOUT = 60.0  # seconds of silence, and a tenth for each token of a reply
WAITS = (1.0, 4.0)  # seconds before each further attempt
AT_ONCE = 4  # calls under way
GIVE_UP = 10  # calls without an answer, one behind the other
BUSY = (408, 425, 429)  # worth another attempt, as are 500 and above
REFUSED = (401, 403, 404, 405)  # no other call would do better
LONGEST_REPLY = 1_000_000  # bytes; a reasoning judge writes some ten thousand

_REPLY = re.compile(r"[\W_]*(yes|no)[\W_]*", re.IGNORECASE)


class JudgeError(ValueError):
    """Why a judge cannot be asked, and what to do about it."""


@dataclass(frozen=True)
class Judge:
    """A server, by what goes before /chat/completions, its name of the model, and the
    tokens that a reply may have; those do not change what a whole reply says."""

    url: str
    model: str
    max_tokens: int = 16

    def __post_init__(self):
        try:
            url = httpx2.URL(self.url)
            known = url.scheme in ("http", "https") and url.host
        except httpx2.InvalidURL:
            known = False
        if not known or url.userinfo or url.query:  # which are not shown
            raise JudgeError(
                "the judge's url must be one such as http://127.0.0.1:8000/v1, without "
                f"user or query: give a key in the environment variable {KEY}"
            )
        if not self.model:
            raise JudgeError("the judge's model is not named: servers want its name")


class Job(NamedTuple):
    """One completion to judge; `text` is None where there is nothing to judge."""

    path: Path
    id: str
    text: str | None


class Plan(NamedTuple):
    """What will be asked; str() is what its cost is accepted on."""

    judge: Judge
    settings: dict[Path, dict]
    jobs: list[Job]
    about: str

    @property
    def calls(self) -> list[Job]:
        """The jobs with something to judge."""
        return [job for job in self.jobs if job.text is not None]

    def __str__(self) -> str:
        calls, tokens = self.calls, sum(len(job.text) for job in self.calls) // 4
        most = self.judge.max_tokens * len(calls)
        return (
            f"asks      {self.judge.model} at {self.judge.url} about {self.about}\n"
            f"calls     {len(calls):,}, each tried up to {len(WAITS) + 1} times; about "
            f"{tokens:,} tokens sent, {most:,} received at most\n"
            f"no call   {len(self.jobs) - len(calls):,} without reasoning or letter"
        )


def plan(
    run: str | Path,
    asked: Mapping[str, Question],
    judge: Judge,
    max_calls: int | None = None,
) -> Plan:
    """What is to be asked about a run's predictions; nothing is asked or written.
    `asked` are the questions by id. With `max_calls` every method is judged on the same
    sample of each set, those whose hash comes first, so that a larger one holds a
    smaller one. ValueError where `max_calls` is below one question of each, and where
    judgements by another judge or of other predictions are there."""
    run, jobs, settings = Path(run), [], {}
    predictions = tables.read_predictions(run)
    parts = {key: rows for key, rows in predictions.items() if key[0] in tables.METHODS}
    most = max(map(len, parts.values()))
    size = most if max_calls is None else min(most, max_calls // len(parts))
    if size < 1:
        raise ValueError(
            f"max_calls is {max_calls}, but {len(parts)} calls are needed for one "
            "question of each method on each set: raise it"
        )
    for (label, name), rows in parts.items():
        path = run / f"judgements_{label}_{name}.jsonl"
        file = run / f"predictions_{label}_{name}.jsonl"
        settings[path] = {  # all that decides; a server may have moved
            "judge": judge.model,
            "prompt": hashlib.sha256(PROMPT.encode()).hexdigest()[:12],
            "temperature": 0,
            "predictions": records.sha256(file)[:12],
        }
        resume.refuse_other_settings(path, settings[path])
        known = records.repair_jsonl(path)
        done = {row["id"] for row in known if row["error"] is None}
        for row in sorted(rows, key=lambda row: _place(row["id"]))[:size]:
            if row["id"] not in done:
                jobs.append(Job(path, row["id"], text(asked[row["id"]], row)))
    jobs.sort(key=lambda job: _place(job.id))  # a part of it is a sample of all, too
    methods, sets = (", ".join(dict.fromkeys(key[i] for key in parts)) for i in (0, 1))
    about = f"up to {size} questions each of {methods} on {sets}"
    return Plan(judge, settings, jobs, about)


def _place(key: str) -> str:
    return hashlib.sha256(f"judge/{key}".encode()).hexdigest()


def text(question: Question, row: Mapping) -> str | None:
    """What the judge reads of a prediction; None without reasoning or letter."""
    reasoning, letter = reasoning_of(row["completion"]), row["first_letter"]
    if reasoning is None or letter is None:
        return None
    return PROMPT.format(
        question=question.text,
        options=option_lines(question.options),
        reasoning=reasoning,
        answer=f"{letter}. {question.options[LETTERS.index(letter)]}",
    )


def carry_out(todo: Plan) -> dict[str, int]:
    """Ask, and keep each answer as it comes: {calls, yes, no, failed}. A row is {id,
    supports: True, False or None where the call failed, error}. Raises JudgeError where
    the server refuses all calls and after GIVE_UP calls in a row without an answer, and
    Busy (lib/run_files.py) while another process asks."""
    key = _key()  # before anything is written
    run, failed = next(iter(todo.settings)).parent, 0
    counts = {"calls": len(todo.calls), "yes": 0, "no": 0, "failed": 0}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    patience = TIMEOUT + todo.judge.max_tokens / 10
    with (
        run_files.one_writer(run / "judgements", "asked for"),
        httpx2.Client(timeout=patience, headers=headers) as client,
    ):
        for path, settings in todo.settings.items():
            records.write_json(resume.settings_file(path), settings)
        for job in todo.jobs:
            if job.text is None:
                records.append_jsonl(job.path, [_row(job.id, False)])
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            ask = partial(_ask, client, todo.judge, key)
            calls = {pool.submit(ask, job): job for job in todo.calls}
            for call in tqdm(as_completed(calls), "judge", len(calls)):
                row = call.result()
                records.append_jsonl(calls[call].path, [row])
                counts[{True: "yes", False: "no", None: "failed"}[row["supports"]]] += 1
                failed = failed + 1 if row["supports"] is None else 0
                if failed >= GIVE_UP:
                    raise JudgeError(
                        f"{failed} calls in a row brought no answer, the last one: "
                        f"{row['error']}. Mend that and run it again: answers are kept"
                    )
        finally:
            pool.shutdown(cancel_futures=True)
    return counts


def _key() -> str:
    """The environment's, without the line end of its file. JudgeError for one that
    cannot be sent: the error of whoever tried would quote it."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(f"{KEY} holds characters that no key has: set it anew")
    return key


def _ask(client: httpx2.Client, judge: Judge, key: str, job: Job) -> dict:
    """The row of one call, after as many attempts as it takes and WAITS allows."""
    address = f"{judge.url.rstrip('/')}/chat/completions"
    body = {"model": judge.model, "temperature": 0, "max_tokens": judge.max_tokens}
    body["messages"] = [{"role": "user", "content": job.text}]
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        try:
            status, said = _post(client, address, body)
        except (httpx2.TransportError, httpx2.DecodingError) as broken:
            error = f"no reply: {_shown(f'{type(broken).__name__} {broken}', key)}"
            continue
        if status == 200:
            return _judgement(job.id, said, key)
        error = f"answered {status}: {_shown(said, key)}"
        if status in REFUSED:
            raise JudgeError(
                f"{address} {error}. Mend the address, the model's name, or the key in "
                f"the environment variable {KEY}; what was answered is kept"
            )
        if status < 500 and status not in BUSY:
            break
    return _row(job.id, None, error)


def _post(client: httpx2.Client, address: str, body: dict) -> tuple[int, str]:
    """(status, text) of the reply, of which no more is read than `LONGEST_REPLY`."""
    content = bytearray()
    with client.stream("POST", address, json=body) as reply:
        for part in reply.iter_bytes():
            content += part
            if len(content) > LONGEST_REPLY:
                raise httpx2.DecodingError(f"more than {LONGEST_REPLY:,} bytes")
    return reply.status_code, content.decode(errors="replace")


def _judgement(id: str, reply: str, key: str) -> dict:
    """The row of a reply; one that is not a plain yes or no is a failed call."""
    try:
        choice = json.loads(reply)["choices"][0]
        said = choice["message"]["content"] or ""
        cut = choice.get("finish_reason") == "length"
        # A judge may reason before it says.
        word = _REPLY.fullmatch(said.rpartition("</think>")[2])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _row(id, None, f"no chat completion: {_shown(reply, key)}")
    if word is None:
        more = "cut off, raise --max-tokens of lib.run judge"
        why = more if cut else "neither yes nor no"
        return _row(id, None, f"{why}: {_shown(said or reply, key)}")
    return _row(id, word[1].lower() == "yes")


def _row(id: str, supports: bool | None, error: str | None = None) -> dict:
    return {"id": id, "supports": supports, "error": error}


def _shown(body: str, key: str) -> str:
    """The beginning of what a server said, on one line, without the key."""
    for echoed in filter(None, (key, key.replace("/", r"\/"))):  # plain, or in JSON
        body = body.replace(echoed, "[key]")
    return shown(" ".join(body.split()), 200)


def main(arguments: list[str]) -> None:
    """Ask about a run, print what came of it; JudgeError where nothing was asked."""
    parser = Door("python -m lib.run judge", __doc__)
    parser.add_argument("run", help="relative: below the repository")
    parser.add_argument("--url", required=True, help="such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="the name the server knows")
    parser.add_argument("--max-calls", type=int, help="a sample, the same for all")
    more = "of a reply (%(default)s); thousands for a judge that reasons first"
    parser.add_argument("--max-tokens", type=int, default=Judge.max_tokens, help=more)
    parser.add_argument("--accept-cost", action="store_true", help="ask, and pay")
    parser.add_argument("--data-dir", help="if the run's own records do not name it")
    parser.add_argument("--general-dir", help="of the general set, likewise")
    given = parser.parse_args(arguments)
    run = paths.require(given.run, "give the folder of a run, below outputs/")
    chain.verify(run, before="05_analysis")  # which is old once a judge was asked
    state = run / "pipeline.json"
    known = records.read_json(state, {"parameters": {}})["parameters"]
    data = given.data_dir or known.get("data_dir")
    if not data:
        raise JudgeError(f"{state} names no data_dir: give it by --data-dir")
    general = given.general_dir or known.get("general_dir") or data
    names = tables.sets_of(tables.read_predictions(run))
    judge = Judge(given.url, given.model, given.max_tokens)
    todo = plan(run, tables.asked(data, general, names), judge, given.max_calls)
    print(todo)
    if not given.accept_cost:
        raise JudgeError("nothing was asked: add --accept-cost if you accept that")
    try:
        counts = carry_out(todo)
    finally:  # what an interrupted one was told counts too
        chain.extend(run, "04_eval", run.glob("judgements_*.jsonl"))
    print(", ".join(f"{key} {count:,}" for key, count in counts.items()))
    print("to show them start the run again: 04_eval takes them up")
