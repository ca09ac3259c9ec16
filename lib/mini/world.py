"""The MiniPlan world: scenes, steps with visible lasting effects, and goals.

A scene holds two objects of one domain on a table with a tray. A hand performs steps;
each step (verb + object) leaves a mark that stays: a wet ring, a split, a dark colour,
dots, a strap, or the object moved to the tray. In most clips the wet ring dries half a
second after it came, so that more frames show more. A goal names four steps in no
particular order; they are always carried out in the order of `EFFECTS` (wash before
cut, cut before cook, ...), which is what a planner has to know. Structure after
SEED-Bench-R1 (arXiv 2503.24376, section 3): progress video, current observation,
"what action should I take next in order to {goal}?".

>>> episode = sample_episode(random.Random(0), "Daily life", environment=3)
>>> episode.goal, [episode.say(s) for s in episode.actions], episode.say(episode.answer)
('cut and plate the pepper and the carrot', ['cut pepper'], 'cut carrot')"""

import random
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations

import numpy as np

HEIGHT, WIDTH = 56, 112  # pixels; multiples of 28, one merged visual token
CLIP_FPS = 4.0
EFFECTS = ("wet", "split", "dark", "dots", "strap", "tray")  # also the order of work
DOMAINS = {
    "Daily life": {
        "objects": ("tomato", "carrot", "onion", "pepper"),
        "verbs": ("wash", "cut", "cook", "salt", "tie", "plate"),
        "scenarios": ("Cooking", "Tidying"),
    },
    "Hobbies": {
        "objects": ("clay", "felt", "bead", "yarn"),
        "verbs": ("soak", "snip", "dye", "speckle", "bind", "frame"),
        "scenarios": ("Crafting", "Gardening"),
    },
    "Recreation": {
        "objects": ("ball", "kite", "boat", "tent"),
        "verbs": ("hose", "slit", "smoke", "chalk", "tape", "store"),
        "scenarios": ("Camping", "Games"),
    },
    "Work": {
        "objects": ("board", "pipe", "brick", "panel"),
        "verbs": ("rinse", "saw", "burn", "sand", "strap", "stack"),
        "scenarios": ("Building", "Workshop"),
    },
}
_COLOURS = ((220, 40, 40), (245, 150, 30), (150, 60, 190), (60, 170, 60))
_HAND = (255, 205, 170)
_DUSK = (0.55, 0.5, 0.75)  # share of the light that is left, red, green, blue
_TRAY_TOP, _TRAY_Y, _REACH = 38, 45, 12
_WINDOW = 13  # half the side of the square an object is drawn into

DRIES = 0.7  # share of clips in which a wet ring dries
_DRY_AFTER = 2  # clip frames

_VERBS = {"single": 4, "pair": 2}  # task families: on one object, or on both


@dataclass(frozen=True)
class Step:
    """One action: the effect's index in `EFFECTS` on object 0 or 1 of the scene."""

    effect: int
    item: int


@dataclass(frozen=True)
class Episode:
    """Everything true about one question: the scene, what happened, what comes next.
    `actions` is what the hand did so far (progress and distracting steps, in order),
    `plan` the goal's four steps in order, `answer` the next of them."""

    domain: str
    environment: int
    objects: tuple[int, int]
    positions: tuple[tuple[int, int], tuple[int, int]]
    family: str
    combination: tuple[int, ...]
    goal: str
    plan: tuple[Step, ...]
    actions: tuple[Step, ...]
    answer: Step
    options: tuple[Step, ...]
    hand_covers: bool  # in the still the hand covers the object worked on
    tail: int  # idle frames after the last action
    hold: int  # frames from one action to the next
    dries: bool  # a wet ring is seen for two frames alone
    image_only: bool  # no clip is shown

    def name(self, item: int) -> str:
        """The word for object 0 or 1 of the scene."""
        return DOMAINS[self.domain]["objects"][self.objects[item]]

    def say(self, step: Step) -> str:
        """The step in words, as options and narrations write it."""
        return f"{DOMAINS[self.domain]['verbs'][step.effect]} {self.name(step.item)}"

    @property
    def letter(self) -> str:
        """The gold letter."""
        return "ABCDE"[self.options.index(self.answer)]

    @property
    def shown(self) -> tuple[Step, ...]:
        """`actions`; of a still the left object's first, and effects in work order."""
        if not self.image_only:
            return self.actions
        left = min((0, 1), key=lambda item: self.positions[item][0])
        return tuple(sorted(self.actions, key=lambda s: (s.item != left, s.effect)))

    @property
    def frames(self) -> int:
        """Length of the clip in frames at `CLIP_FPS`."""
        return 4 + self.hold * len(self.actions) + self.tail

    def span(self, index: int) -> tuple[int, int]:
        """First and last clip frame of action `index`."""
        start = 4 + self.hold * index
        return start, start + self.hold - 1


def combinations_for(family: str, held_out: bool) -> tuple[tuple[int, ...], ...]:
    """Verb combinations of a task family: every third is held out for L3."""
    every = enumerate(combinations(range(len(EFFECTS)), _VERBS[family]))
    return tuple(found for i, found in every if (i % 3 == 1) == held_out)


def sample_episode(
    rng: random.Random,
    domain: str,
    environment: int,
    held_out: bool = False,
    gold: int | None = None,
    image_only: bool = False,
) -> Episode:
    """Draw one episode; `gold` fixes the answer's place among the options (0-3). How
    many plan steps are done is uniform over 0-3 and all four are the options, so that
    the text alone says nothing about the answer."""
    objects = tuple(rng.sample(range(4), 2))
    xs = (30, 82) if rng.random() < 0.5 else (82, 30)
    positions = tuple((x + rng.randint(-6, 6), 17 + rng.randint(-2, 2)) for x in xs)
    family = rng.choice(("single", "pair"))
    combination = rng.choice(combinations_for(family, held_out))
    items = (0,) if family == "single" else (0, 1)
    plan = tuple(Step(effect, item) for effect in combination for item in items)
    done = rng.randrange(4)
    actions = list(plan[:done])
    # A clip must show something: with no progress yet there is always a distraction.
    if rng.random() < 0.4 or (done == 0 and not image_only):
        every = [Step(effect, item) for item in (0, 1) for effect in range(6)]
        others = [step for step in every if step not in plan]
        actions.insert(rng.randint(0, len(actions)), rng.choice(others))
    options = [s for s in plan if s != plan[done]]
    rng.shuffle(options)
    options.insert(rng.randrange(4) if gold is None else gold, plan[done])
    return Episode(
        domain=domain,
        environment=environment,
        objects=objects,
        positions=positions,
        family=family,
        combination=combination,
        goal=_goal(rng, domain, objects, family, combination),
        plan=plan,
        actions=tuple(actions),
        answer=plan[done],
        options=tuple(options),
        hand_covers=not image_only and rng.random() < 0.5,
        tail=rng.randint(2, 5),
        hold=rng.randint(5, 7),
        dries=not image_only and rng.random() < DRIES,
        image_only=image_only,
    )


def _goal(rng, domain, objects, family, combination) -> str:
    verbs = [DOMAINS[domain]["verbs"][effect] for effect in combination]
    names = [DOMAINS[domain]["objects"][i] for i in objects]
    rng.shuffle(verbs)
    if family == "single":
        return f"{', '.join(verbs[:-1])} and {verbs[-1]} the {names[0]}"
    return f"{verbs[0]} and {verbs[1]} the {names[0]} and the {names[1]}"


def effects_at(episode: Episode, frame: int) -> np.ndarray:
    """Which effects are visible at a clip frame: bool [2 objects, 6 effects]."""
    state = np.zeros((2, len(EFFECTS)), bool)
    for index, step in enumerate(episode.actions):
        since = frame - episode.span(index)[0] - 2
        dried = episode.dries and EFFECTS[step.effect] == "wet" and since >= _DRY_AFTER
        if since >= 0 and not dried:
            state[step.item, step.effect] = True
    return state


def clip_frame(episode: Episode, frame: int) -> np.ndarray:
    """Frame `frame` of the progress video: uint8 [56, 112, 3]."""
    state, hand = effects_at(episode, frame), None
    for index, step in enumerate(episode.actions):
        phase = frame - episode.span(index)[0]
        if 0 <= phase < 3:
            x, y = place(episode, state, step.item, frame)
            hand = (x, y + _REACH - 2 * phase)
    return _render(episode, state, hand, frame)


def clip(episode: Episode) -> np.ndarray:
    """The whole progress video: uint8 [frames, 56, 112, 3] at `CLIP_FPS`."""
    return np.stack([clip_frame(episode, t) for t in range(episode.frames)])


def still(episode: Episode) -> np.ndarray:
    """The current observation: uint8 [56, 112, 3], the hand perhaps in the way."""
    last = episode.frames - 1
    state, hand = effects_at(episode, last), None
    if episode.hand_covers:
        hand = place(episode, state, episode.actions[-1].item, last)
    return _render(episode, state, hand, last, hand_size=10)


def place(episode: Episode, state, item: int, frame: int) -> tuple[int, int]:
    """Centre of an object in a frame, camera jitter included: (x, y) in pixels."""
    x, y = episode.positions[item]
    right, down = _shake(episode.environment, frame)
    on_tray = state[item, EFFECTS.index("tray")]
    return x + right, (_TRAY_Y if on_tray else y) + down


def _render(episode, state, hand, frame, hand_size=5) -> np.ndarray:
    canvas = _background(episode.environment).copy()
    domain = list(DOMAINS).index(episode.domain)
    for item in (0, 1):
        x, y = place(episode, state, item, frame)
        kind = episode.objects[item]
        _draw_object(canvas, x, y, kind, (kind + domain) % 4, state[item])
    if hand is not None:
        x, y = hand
        top, left = max(0, y - hand_size), max(0, x - hand_size)
        canvas[top : y + hand_size + 1, left : x + hand_size + 1] = _HAND
    if dusky(episode.environment):
        canvas = (canvas * _DUSK).astype(np.uint8)
    return canvas


def dusky(environment: int) -> bool:
    """Whether it is evening there: in all environments of L2 and one in 25 others."""
    return 100 <= environment < 200 or environment % 25 == 24


@lru_cache(maxsize=512)
def _background(environment: int) -> np.ndarray:
    """Palette, texture and tray of an environment; a pure function of its number."""
    rng = np.random.default_rng([71, environment])
    canvas = np.empty((HEIGHT, WIDTH, 3))
    canvas[:] = rng.integers(150, 236, 3)
    canvas[34:] = rng.integers(90, 151, 3)
    style = rng.integers(0, 4)  # plain, or with lines or dots
    if style == 1:
        canvas[::8] *= 0.88
    if style == 2:
        canvas[:, ::8] *= 0.88
    if style == 3:
        canvas[::8, ::8] *= 0.7
    left, right = 4 + rng.integers(0, 4), WIDTH - 4 - rng.integers(0, 4)
    canvas[_TRAY_TOP : HEIGHT - 2, left:right] = rng.integers(225, 246)
    return canvas.astype(np.uint8)


@lru_cache(maxsize=65536)
def _shake(environment: int, frame: int) -> tuple[int, int]:
    """Camera jitter in pixels; some environments are steadier than others."""
    amplitude = np.random.default_rng([72, environment]).integers(0, 3)
    if amplitude == 0:
        return 0, 0
    rng = np.random.default_rng([73, environment, frame])
    return tuple(rng.integers(-amplitude, amplitude + 1, 2).tolist())


_DY, _DX = np.mgrid[-_WINDOW : _WINDOW + 1, -_WINDOW : _WINDOW + 1]
_DOTS = np.zeros(_DX.shape, bool)
for _x, _y in ((-6, -3), (-3, -6), (0, -2), (3, -6), (6, -3)):
    _DOTS |= (abs(_DX - _x) <= 1) & (abs(_DY - _y) <= 1)


@cache
def _masks(shape: int, split: bool) -> tuple[np.ndarray, np.ndarray]:
    """Body of an object and the ring around it, on the drawing window."""
    body = np.zeros(_DX.shape, bool)
    for side in (-1, 1):
        dx = _DX - side * (4 if split else 0)
        part = (
            dx**2 + _DY**2 <= 64,  # a circle
            (abs(_DY) <= 8) & (abs(dx) <= _DY / 2 + 5),  # a triangle
            (abs(dx) < 8) & (abs(_DY) < 8),  # a square
            abs(dx) + abs(_DY) <= 9,  # a diamond
        )[shape]
        body |= part & (dx * side >= 0)
    distance = np.sqrt(_DX**2 + _DY**2)
    return body, (distance > 10.5) & (distance < 13)


def _draw_object(canvas, x, y, colour, shape, state) -> None:
    wet, split, dark, dots, strap, _ = state
    body, ring = _masks(shape, bool(split))
    top, bottom = max(0, y - _WINDOW), min(HEIGHT, y + _WINDOW + 1)
    left, right = max(0, x - _WINDOW), min(WIDTH, x + _WINDOW + 1)
    view = canvas[top:bottom, left:right]
    # the part of the drawing window that lies in the picture
    rows = slice(top - y + _WINDOW, bottom - y + _WINDOW)
    columns = slice(left - x + _WINDOW, right - x + _WINDOW)
    base = np.array(_COLOURS[colour])
    view[body[rows, columns]] = base * 0.4 if dark else base
    if strap:
        view[(body & (_DY >= 1) & (_DY <= 5))[rows, columns]] = (250, 235, 70)
    if dots:
        view[_DOTS[rows, columns]] = (255, 255, 255)
    if wet:
        view[ring[rows, columns]] = (50, 110, 255)
