"""Write MiniPlan to disk in the layout and schemas of SEED-Bench-R1 and LongVideoBench.

`python -m lib.mini write outputs/data/miniplan` renders h264 clips and png stills and
writes the annotations that a loader of the real ones expects (schemas:
https://huggingface.co/datasets/TencentARC/SEED-Bench-R1 and
https://huggingface.co/datasets/longvideobench/LongVideoBench):

    annotations/training.jsonl, training_with_cot.jsonl, validation_L1|L2|L3.jsonl
    videos/MiniPlan/*.mp4   images/MiniPlan/*.png
    general/lvb_val.json    general/videos/*.mp4

Levels, after section 3 of arXiv 2503.24376: training and L1 share environments and task
families (daily life), L2 has new environments in evening light, L3 has new
environments, all four domains and verb combinations that occur nowhere else. Same
arguments, same bytes; more questions are the same ones and others.

The reasoning in training_with_cot comes from a simulated teacher that overlooks some
steps and is sometimes hasty; like the paper's, it is kept where its answer is right."""

import random
import shutil
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from lib import processes, records, run_files
from lib.data.questions import FILES
from lib.mini import lessons, world
from lib.mini.world import DOMAINS, Episode

SOURCE = "MiniPlan"
# What stands in a folder for the questions and pixels below: change it when they do.
GENERATOR = "0bdbcacaa406"
ENVIRONMENTS = {
    "training": range(0, 12),
    "L1": range(0, 12),
    "L2": range(100, 112),
    "L3": range(200, 216),
    "general": range(300, 316),
}
CATEGORIES = {"shown step": "S2A", "last step": "E3E", "shown object": "S2O"}
IMAGE_ONLY_SHARE = 0.15
TEACHER_OVERLOOKS, TEACHER_HASTY = 0.08, 0.15
# BT.601, limited range: what red, green and blue, from 0 to 1, add to Y, Cb and Cr.
LUMA = (65.481, 128.553, 24.966)
CHROMA = ((-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
PATIENCE = 3600.0  # seconds to wait for another process that writes the same folder


@dataclass(frozen=True)
class Sizes:
    """How many questions to write, and the seed they are drawn with."""

    training: int = 2200
    level: int = 500
    general: int = 200
    seed: int = 0


SIZES = {"full": Sizes(), "smoke": Sizes(training=48, level=16, general=16)}


@dataclass(frozen=True)
class Item:
    """One question of a split before it becomes a record."""

    split: str
    number: int
    episode: Episode
    scenario: str = ""

    @property
    def stem(self) -> str:
        """File name of clip and still, without suffix."""
        return f"{self.split}_{self.number:05d}"


def make_items(sizes: Sizes) -> dict[str, list[Item]]:
    """Episodes of every split; no instance occurs twice. Training comes first, so that
    its questions do not depend on how many a level has."""
    counts = {"training": sizes.training}
    counts |= dict.fromkeys(("L1", "L2", "L3"), sizes.level)
    seen: set = set()
    return {
        split: [_item(split, number, sizes.seed, seen) for number in range(count)]
        for split, count in counts.items()
    }


def _item(split: str, number: int, seed: int, seen: set) -> Item:
    """The question of a number, drawn by that alone: again where its instance is in
    `seen`, to which it is added."""
    rng = random.Random(f"miniplan/{seed}/{split}/{number}")
    domain = list(DOMAINS)[number % 4] if split == "L3" else "Daily life"
    # Four neighbours have four letters, whatever the domain.
    gold = (number + number // 4) % 4
    while True:
        image_only = rng.random() < IMAGE_ONLY_SHARE
        where, held_out = rng.choice(ENVIRONMENTS[split]), split == "L3"
        episode = world.sample_episode(rng, domain, where, held_out, gold, image_only)
        if instance(episode) not in seen:
            seen.add(instance(episode))
            scenario = rng.choice(DOMAINS[domain]["scenarios"])
            return Item(split, number, episode, scenario)


def instance(e: Episode) -> tuple:
    """What makes two questions the same instance: scene, task and progress."""
    return e.domain, e.environment, e.objects, e.positions, e.plan, e.actions


def record(item: Item) -> dict:
    """The SEED-Bench-R1 record of an item, keys as in its split's file."""
    e = item.episode
    progress = []
    for index, step in enumerate(() if e.image_only else e.actions):
        frames = dict(zip(("start_frame", "stop_frame"), e.span(index), strict=True))
        progress.append({"narration_text": e.say(step)} | frames)
    found = {
        "sample_id": item.number,
        "video_source": SOURCE,
        "video_id": f"M{e.environment:03d}_{item.stem}",
        "task_goal": e.goal,
        "question": lessons.question_text(e),
        "answer": e.say(e.answer),
        "current_observation_frame": e.frames - 1,
        "task_progress_metadata": progress,
        "video_basename": f"{item.stem}.mp4",
        "current_observation_basename": f"{item.stem}.png",
    }
    if item.split == "training":
        found["negative_answers"] = [e.say(s) for s in e.options if s != e.answer]
        return found
    found |= {f"choice_{x}": e.say(s) for x, s in zip("abcd", e.options, strict=True)}
    found["golden_choice_idx"] = e.letter
    if item.split == "L3":
        found["sample_id"] = f"{found['video_id']}_0"
        found |= {"domain": e.domain, "scenario": item.scenario, "task_start_frame": 0}
    return found


def demonstration(item: Item, seed: int) -> dict | None:
    """The teacher's response to a training item; None where its answer is wrong."""
    rng, e = random.Random(f"teacher/{seed}/{item.number}"), item.episode
    noticed = {s for s in e.actions if rng.random() >= TEACHER_OVERLOOKS}
    if rng.random() < TEACHER_HASTY:
        step = lessons.hasty_step(rng, e)
        thought = lessons.hasty_thought(e, step)
    else:
        step = next(s for s in e.plan if s not in noticed)
        seen = tuple(s for s in e.shown if s in noticed)
        thought = lessons.taught_thought(e, seen, step)
    if step != e.answer:
        return None
    options = list(map(e.say, e.options))
    problem = lessons.ask(lessons.question_text(e), options, "think")
    content = [{"type": "image", "image": f"images/{SOURCE}/{item.stem}.png"}]
    if not e.image_only:
        clip = {"type": "video", "video": f"videos/{SOURCE}/{item.stem}.mp4"}
        content.insert(0, clip)
    content.append({"type": "text", "text": problem})
    return {
        "sample_id": item.number,
        "prompt": [{"role": "user", "content": content}],
        "problem": problem,
        "solution": f"<answer>{e.letter}.</answer>",
        "response": lessons.answer_text(thought, e.letter),
        "reward": 1.0,
    }


def make_general(count: int, seed: int) -> list[tuple[dict, Episode]]:
    """Perception questions in LongVideoBench's schema, with the episode to render: a
    third each for a step that is shown, the last one, and an object; 4 or 5 options;
    clips of 8-15 s and 15-30 s (duration groups 15 and 60), in which nothing dries."""
    return [_general(number, seed) for number in range(count)]


def _general(number: int, seed: int) -> tuple[dict, Episode]:
    rng = random.Random(f"miniplan/{seed}/general/{number}")
    domain = list(DOMAINS)[number % 4]
    group = (15, 60)[number // 4 % 2]
    actions: tuple = ()
    while len(actions) < 2:
        environment = rng.choice(ENVIRONMENTS["general"])
        episode = world.sample_episode(rng, domain, environment)
        actions = episode.actions
    low, high = {15: (8.5, 15), 60: (15.5, 30)}[group]
    frames = int(rng.uniform(low, high) * world.CLIP_FPS)
    hold = (frames - 8) // len(actions)
    tail = frames - 4 - hold * len(actions)
    episode = replace(episode, hold=hold, tail=tail, dries=False)
    count, asks = 4 + number // 8 % 2, list(CATEGORIES)[number % 3]
    _, gold, others = lessons.about_clip(rng, episode, asks, count)
    candidates, question = rng.sample(others, count - 1), lessons.ASKS[asks]
    correct = rng.randrange(count)
    candidates.insert(correct, gold)
    video = f"general_{number:05d}"
    return {
        "video_id": video,
        "question": question,
        "question_wo_referring_query": question,
        "candidates": candidates,
        "correct_choice": correct,
        "position": [episode.span(i)[0] for i in range(len(actions))],
        "topic_category": domain,
        "question_category": CATEGORIES[asks],
        "level": "L1-Perception",
        "id": f"{video}_0",
        "video_path": f"{video}.mp4",
        "subtitle_path": "",
        "duration_group": group,
        "starting_timestamp_for_subtitles": 0,
        "duration": episode.frames / world.CLIP_FPS,
        "view_count": 0,
    }, episode


def yuv420(pixels: np.ndarray) -> np.ndarray:
    """RGB [H, W, 3] as 8-bit limited-range BT.601 4:2:0, planes stacked [1.5 H, W];
    done here and not by ffmpeg, whose rounding may depend on the machine."""
    wide = pixels / 255
    rows = wide[::2] + wide[1::2]
    small = (rows[:, ::2] + rows[:, 1::2]) / 4
    planes = [16 + wide @ LUMA, *(128 + small @ own for own in CHROMA)]
    planes = np.concatenate([plane.ravel() for plane in planes])
    return np.rint(planes).astype(np.uint8).reshape(-1, pixels.shape[1])


def write_clip(path: Path, episode: Episode) -> None:
    """Encode an episode as h264 mp4, the same one in the same bytes: on one thread, and
    with x264's macroblock tree off. With it 4 of 304 clips had other bytes in another
    process, without it none of 1,748."""
    options = {"crf": "14", "preset": "veryfast", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=int(world.CLIP_FPS))
        stream.width, stream.height = world.WIDTH, world.HEIGHT
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = options | {"x264-params": "mbtree=0"}
        for pixels in world.clip(episode):
            frame = av.VideoFrame.from_ndarray(yuv420(pixels), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def annotations(folder: Path, split: str) -> Path:
    """The file of a split's records."""
    return folder / "annotations" / FILES[split]


def write(folder: Path, sizes: Sizes) -> Path:
    """Write the whole benchmark, or return at once where it is already there. All is
    made beside the folder and moved into place when complete; a second process that
    wants the same waits. FileExistsError for a folder that holds something else."""
    folder = folder.resolve()  # to a link, to another disk, no folder can be moved
    marker = folder / "benchmark.json"
    with run_files.one_writer(folder, "written", PATIENCE):
        if marker.exists():
            found, stamp = records.read_json(marker), _stamp(sizes)
            if found != stamp:
                raise FileExistsError(
                    f"{folder} holds a benchmark made with other settings ({found}, "
                    f"now {stamp}): remove it or choose another folder"
                )
            return folder
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} exists and holds no complete benchmark")
        staging = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(staging, ignore_errors=True)
        media = write_annotations(staging, sizes)
        with closing(processes.mapped(_write_media, media, few=300)) as done:
            for _ in tqdm(done, total=len(media), desc="MiniPlan media"):
                pass
        staging.rename(folder)  # also over an empty folder
    return folder


def write_annotations(folder: Path, sizes: Sizes) -> list[tuple[Path, Episode]]:
    """Write every file but clips and stills; returns these, each with its episode."""
    videos, images = folder / "videos" / SOURCE, folder / "images" / SOURCE
    splits, media = make_items(sizes), []
    for split, items in splits.items():
        records.write_jsonl(annotations(folder, split), map(record, items))
        for item in items:
            media.append((images / f"{item.stem}.png", item.episode))
            if not item.episode.image_only:
                media.append((videos / f"{item.stem}.mp4", item.episode))
    taught = (demonstration(item, sizes.seed) for item in splits["training"])
    path = annotations(folder, "demonstrations")
    records.write_jsonl(path, filter(None, taught))
    general, rows = folder / "general", make_general(sizes.general, sizes.seed)
    records.write_json(general / "lvb_val.json", [row for row, _ in rows])
    records.write_json(folder / "benchmark.json", _stamp(sizes))
    return media + [(general / "videos" / r["video_path"], e) for r, e in rows]


def _stamp(sizes: Sizes) -> dict:
    return {"sizes": asdict(sizes), "generator": GENERATOR}


def _write_media(job: tuple[Path, Episode]) -> None:
    file, episode = job
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".mp4":
        write_clip(file, episode)
    else:
        Image.fromarray(world.still(episode)).save(file)
