"""The tables of docs/scale.md say what the committed results hold."""

from pathlib import Path

from scale_tables import kills_text, million_text, overhead_text, simulation_text
from w2wpp.common.files import read_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_kills_are_counted_over_trainings_and_a_loss_would_show() -> None:
    run = {"killed": {"worker": 2, "node": 1}, "lost": 0, "twice": 0, "failed": 0, "tried_again": {"a worker was lost": 3}, "equal": True}
    about = {"command": "ray_faults.py", "machine": "2 cores", "people": 24, "group": 2}
    text = kills_text({**about, "runs": [run, {**run, "lost": 1, "equal": False, "tried_again": {}}]})
    assert "| 1 | 2 workers, 1 node | a worker was lost: 3 | 0 | 0 | 0 | yes |" in text
    assert "| 2 | 2 workers, 1 node | nothing | 1 | 0 | 0 | no |" in text and "6 kills" in text


def test_the_committed_results_become_tables() -> None:
    overhead = read_json(RESULTS / "ray_overhead.json")
    assert overhead["overhead"] <= 0.05, "the bar of the engine's overhead"
    assert f"{overhead['seconds']['one process']:.1f}" in overhead_text(overhead)
    simulation = simulation_text(read_json(RESULTS / "ray_simulation.json"))
    assert "100,000 people on 1,000 simulated workers" in simulation
    assert "1,000,000 adapters" in million_text(read_json(RESULTS / "million.json"))
