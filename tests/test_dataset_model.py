"""The dataset against a model of it in memory: append, label, kill, select, merge, reopen and verify, in any order."""

import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fault_basics
from w2wpp.common.errors import W2WError
from w2wpp.dataset.select_merge import merge, select
from w2wpp.dataset.weights import WeightDataset

HOSTILE = ["a", "b", "A", "a#b", "../x", "/abs", "..", "\u2028", "a\nb", ""]
IDS = st.one_of(st.sampled_from(HOSTILE), st.text("ab/\u2028\ud800", max_size=4))
VALUES = st.one_of(st.text("ab ", max_size=3), st.integers(-9, 9))
LABELS = st.dictionaries(st.sampled_from(["split", "age", "näme"]), VALUES, max_size=2)
PLACES = st.integers(0, 10**6)


class DatasetModel(RuleBasedStateMachine):
    """Whatever is done, the folder holds the rows and labels that the model does, in their order."""

    @initialize()
    def start(self) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name) / "data"
        self.data = WeightDataset.create(self.folder, fault_basics.LAYOUT, fault_basics.BASE)
        self.rows: dict[str, tuple[torch.Tensor, dict[str, object]]] = {}
        self.made = 0

    def teardown(self) -> None:
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    def new_rows(self, n: int) -> torch.Tensor:
        self.made += 1
        return torch.cat([fault_basics.row_of("m", self.made * 10 + i) for i in range(n)])

    @rule(names=st.lists(IDS, min_size=1, max_size=3), label=LABELS)
    def append(self, names: list[str], label: dict[str, object]) -> None:
        weights = self.new_rows(len(names))
        try:
            self.data.append(weights, names, [dict(label) for _ in names])
        except W2WError:
            repeated = len(set(names)) < len(names) or self.rows.keys() & set(names)
            assert "" in names or repeated or "\ud800" in "".join(names)
        else:
            self.rows |= {name: (row, dict(label)) for name, row in zip(names, weights, strict=True)}

    @rule()
    def append_what_is_no_number(self) -> None:
        with suppress(W2WError):
            self.data.append(torch.full((1, fault_basics.LAYOUT.d), float("nan")), ["nan"])
            raise AssertionError("it was accepted")

    @precondition(lambda self: self.rows)
    @rule(place=PLACES, label=LABELS)
    def relabel(self, place: int, label: dict[str, object]) -> None:
        name = list(self.rows)[place % len(self.rows)]
        self.data.set_labels({name: dict(label)})
        self.rows[name] = (self.rows[name][0], dict(label))

    @rule(cut=PLACES)
    def kill_a_writer(self, cut: int) -> None:
        """A writer that died left a file aside, a shard that no line names, and the beginning of a line."""
        manifest = self.folder / "manifest.jsonl"
        (self.folder / "shards").mkdir(exist_ok=True)
        (self.folder / "shards" / f".aside-{cut % 3}").write_bytes(b"half")
        (self.folder / "shards" / f"{len(self.data._shards):06d}.safetensors").write_bytes(b"whole, but in no line")
        line = b'{"file": "shards/000099.safetensors", "dtype": "float32", "rows": [{"id": "\xc3\xa9"}]}'
        content = manifest.read_bytes() if manifest.exists() else b""
        manifest.write_bytes(content[: content.rfind(b"\n") + 1] + line[: cut % (len(line) - 1)])
        self.data = WeightDataset.load(self.folder)

    @rule()
    def reopen(self) -> None:
        self.data = WeightDataset.load(self.folder)

    @rule(split=st.sampled_from(["", "x", "1"]))
    def choose(self, split: str) -> None:
        wanted = [name for name, (_, label) in self.rows.items() if str(label.get("split", "")) == split]
        with tempfile.TemporaryDirectory() as other:
            try:
                found = select(self.data, {"split": split}, Path(other) / "out")
            except W2WError:
                assert not wanted
            else:
                assert found.ids == wanted
                found.verify()

    @rule()
    def join(self) -> None:
        with tempfile.TemporaryDirectory() as other:
            more = WeightDataset.create(Path(other) / "more", fault_basics.LAYOUT, fault_basics.BASE)
            more.append(self.new_rows(1), ["of the other"])
            both = merge([more, self.data], Path(other) / "both")
            assert both.ids == ["of the other", *self.rows]
            with suppress(W2WError):
                merge([self.data, self.data], Path(other) / "twice")
                assert not self.rows

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "data"):
            return
        self.data.refresh()
        assert self.data.ids == list(self.rows) and self.data.labels == [label for _, label in self.rows.values()]
        self.data.verify()
        if self.rows:
            assert torch.equal(self.data.rows(), torch.stack([row for row, _ in self.rows.values()]))


DatasetModel.TestCase.settings = settings(max_examples=8, stateful_step_count=12)
TestDataset = DatasetModel.TestCase
