"""A README in the Hugging Face hub's form: a head for the hub, then facts for people."""

from collections.abc import Mapping
from typing import Any

import yaml


def card(head: Mapping[str, Any], title: str, facts: Mapping[str, str], usage: str = "") -> str:
    """The text of a card. head: the hub's metadata. facts: one line each. usage: Python code, if any."""
    lines = [f"- **{key}**: {' '.join(value.split())}" for key, value in facts.items()]
    code = f"\n```python\n{usage.strip()}\n```\n" if usage else ""
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n" + "\n".join(lines) + "\n" + code
