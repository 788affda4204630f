"""The descent on the bound: measured on people held out, kept where these do best, and resumed after an interruption."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2wpp.common.checkpoints import Stateful, load_checkpoint, save_checkpoint
from w2wpp.common.errors import W2WError
from w2wpp.common.files import checksum
from w2wpp.common.memory import ran_out
from w2wpp.common.progress import track
from w2wpp.common.schedules import one_cycle
from w2wpp.common.seeds import generator
from w2wpp.inversion.bound import Bound, EncoderOptions
from w2wpp.inversion.person_photos import COMMON_TONE, TONE
from w2wpp.spaces.point_files import alike, fingerprint

KEEP_EVERY = 60.0  # seconds between two checkpoints
LARGEST = 4.0  # norm of a step's gradient; likeness has 1 to 2.5, and through a chain of solver steps now and then far more
SCALE = 2.0**12  # of the loss where the base is float16: gradients of single pixels are below its smallest numbers


def descend(
    bound: Bound,
    trained: Mapping[str, tuple[nn.Module, float]],
    train: Sequence[str],
    held_out: Sequence[str],
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Train parts by the bound, each at its peak rate, and leave them as they did best on held-out people; returns the history.

    Raises W2WError for a loss that is not a number, a checkpoint of another training, and a step that memory does not hold.
    """
    options, base = bound.options, bound.photos.base
    parameters = [[bound.log_variance], *(list(part.requires_grad_(True).parameters()) for part, _ in trained.values())]
    rates = [options.lr, *(rate for _, rate in trained.values())]
    optimiser = torch.optim.Adam([{"params": mine} for mine in parameters])
    schedule = one_cycle(optimiser, rates, options.steps, 0.1)
    scaler = torch.amp.GradScaler(base.device.type, SCALE, enabled=base.dtype == torch.float16)
    record = _Record({name: part for name, (part, _) in trained.items()})
    record.training, record.space = _training(bound, train), fingerprint(bound.space).cpu()
    kept = nn.ModuleDict({"width": nn.ParameterList([bound.log_variance]), "encoder": bound.encoder})
    state: dict[str, Stateful] = {"record": record, "optimiser": optimiser, "schedule": schedule, "scaler": scaler, "kept": kept}
    state |= record.parts
    first, saved = load_checkpoint(checkpoint, state) if checkpoint else 0, -math.inf
    if not first:
        record.take(0, loss_of_held_out(bound, held_out), None)
    chunk = max(1, options.steps // options.measured)
    for step in track(range(first, options.steps), "train the encoder on photos", "steps"):
        draw = generator(options.seed, "encoder step", step)
        chosen = [train[i] for i in torch.randint(len(train), (options.batch,), generator=draw).tolist()]
        optimiser.zero_grad(set_to_none=True)
        record.add(_with_gradients(bound, chosen, draw, scaler), chunk)
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_([parameter for mine in parameters for parameter in mine], LARGEST)
        scaler.step(optimiser)
        scaler.update()
        schedule.step()
        measured = (step + 1) % chunk == 0
        if measured:
            record.take(step + 1, loss_of_held_out(bound, held_out), record.sums)
        if checkpoint and (measured or time.monotonic() - saved > KEEP_EVERY):
            save_checkpoint(checkpoint, state, step + 1)
            saved = time.monotonic()
    if not record.kept_step and options.steps:
        warnings.warn("no step did better on held-out people than the start, which is kept. Train on more people.", stacklevel=3)
    return record.restored()


def _with_gradients(bound: Bound, people: Sequence[str], draw: torch.Generator, scaler: torch.amp.GradScaler) -> dict[str, float]:
    """The bound's parts on these people, after its backward pass. Raises W2WError where memory does not hold it."""
    with _memory_told(bound.options):
        parts = bound(people, draw, bound.options.jitter)
        scaler.scale(parts["loss"]).backward()
    return {name: float(value.detach()) for name, value in parts.items()}


def loss_of_held_out(bound: Bound, held_out: Sequence[str]) -> dict[str, float]:
    """The bound's parts on people held out. Raises W2WError where memory does not hold a group of them."""
    with _memory_told(bound.options):
        return bound.measure(held_out)


@contextmanager
def _memory_told(options: EncoderOptions) -> Iterator[None]:
    """Raise W2WError where memory runs out: so many people at a time are too many."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        found = f"memory ran out with {options.batch} people and {options.draws} draws each at a time"
        raise W2WError(f"{found}. Give fewer (--encoder-batch, --encoder-draws), or --low-memory.") from error


def _training(bound: Bound, people: Sequence[str]) -> str:
    """Which training this is. No number that was computed takes part: its last bits are not the same with other threads."""
    photos, own = bound.photos, bound.photos.taught
    teacher = f"{photos.teacher} {own.loudness} {own.dataset.fingerprint}" if own else photos.teacher
    teacher += f" tone {TONE} {COMMON_TONE}" if photos.alike else ""
    who = checksum({}, {"people": " ".join(people)})
    return f"{bound.options} {teacher} {photos.prompt!r} {photos.base.id} {bound.space.kind} {bound.space.m} {who}"


class _Record:
    """Losses on the way, and the parts as they were at the measurement with the lowest loss of held-out people."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.parts, self.training = parts, ""  # which training this is: a checkpoint of another one is refused
        self.space = torch.zeros(0)  # the fingerprint of the space that it began with
        self.history: dict[str, Any] = {"step": [], "train": [], "held_out": []}
        self.best, self.kept_step = math.inf, 0
        self.sums: dict[str, float] = {}  # of the train people's losses since the last measurement
        self.states: dict[str, dict[str, Tensor]] = {}

    def add(self, losses: dict[str, float], steps: int) -> None:
        """Count a step's losses in their mean over `steps`."""
        self.sums = {name: self.sums.get(name, 0.0) + value / steps for name, value in losses.items()}

    def take(self, step: int, held_out: dict[str, float], train: dict[str, float] | None) -> None:
        """Note a measurement after `step` steps. Raises W2WError for a loss that is not a number."""
        self.history["step"].append(step)
        self.history["held_out"].append(held_out)
        if train is not None:
            self.history["train"].append(train)
        self.sums = {}
        if not held_out["loss"] < math.inf:
            raise W2WError(f"the loss is not a number after {step} steps. Lower the rate (EncoderOptions.lr, or linear_lr), or --loudness.")
        if held_out["loss"] < self.best:
            self.best, self.kept_step = held_out["loss"], step
            self.states = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in self.parts.items()}

    def restored(self) -> dict[str, Any]:
        """Bring the parts back to the best measurement; returns the history."""
        for name, part in self.parts.items():
            part.load_state_dict(self.states[name])
            part.requires_grad_(False)
        return {**self.history, "kept_step": self.kept_step}

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "parts"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises ValueError for one of another training."""
        if state["training"] != self.training:
            raise ValueError("it is of a training with other options or people")
        if not alike(state["space"], self.space):
            raise ValueError("it is of a training in another space")
        vars(self).update(state)
