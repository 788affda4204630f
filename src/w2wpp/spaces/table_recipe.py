"""What a worker needs to know to read a dataset's rows for a fit that other processes share."""

from dataclasses import dataclass, field, replace

from w2wpp.common.errors import W2WError
from w2wpp.common.mapping import Work, absolute, asked_precision, begin_work
from w2wpp.dataset.weights import WeightDataset
from w2wpp.spaces.streaming import Table


@dataclass(frozen=True)
class TableRecipe:
    """Blocks of a dataset's rows, and what is taken of them: the work of `Table.mapped`."""

    source: str  # of the dataset, which every machine finds there
    fingerprint: str  # what the dataset must turn out to be
    device: str = "cpu"
    precision: str = field(default_factory=asked_precision)

    def placed(self, device: str) -> "TableRecipe":
        """The same for workers in other folders."""
        return replace(self, source=str(absolute(self.source)), device=device)

    def open(self, cores: int) -> Work:
        """Open the dataset; what does a block of it. Raises W2WError if it is another one here."""
        begin_work(cores, self.precision)
        dataset = WeightDataset.from_pretrained(self.source)
        if dataset.fingerprint != self.fingerprint:
            raise W2WError(f"its {self.source} holds other rows than this process has. Give all machines the same files.")
        return Table.of(dataset).work
