"""A real Ray on this machine for tests: two nodes of one core each, and what is known of their processes."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import w2wpp

os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside other tests
SOURCE = str(Path(w2wpp.__file__).parents[1])
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster whose processes import what is tested, and the tests."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'w2wpp[scale]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([SOURCE, str(Path(__file__).parent)]))
        nodes = utils.Cluster()
        for _ in range(2):
            patiently(lambda: nodes.add_node(**NODE))
        yield nodes
        nodes.shutdown()


def patiently(start: Callable[[], object], times: int = 5) -> None:
    """Start what Ray gives 30 seconds to start, which a busy machine may not keep."""
    for left in reversed(range(times)):
        try:
            start()
            return
        except Exception:
            if not left:
                raise


def workers(cluster: Any) -> list[psutil.Process]:
    """The processes that work, on all nodes."""
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()]
    return [child for raylet in raylets for child in raylet.children() if child.name().startswith("ray::Worker")]


def until(true: Callable[[], object], seconds: float = 250) -> None:
    """Wait for a state."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
