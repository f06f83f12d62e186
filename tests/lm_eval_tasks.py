"""Tasks of lm-eval in files, whose data lie beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TASK = """
task: our_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
{fields}
"""


def offline(folder: Path, monkeypatch: Any) -> None:
    """No data set is looked for elsewhere, and none is kept for later."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(folder / "home"))


def write_tasks(folder: Path, rows: Sequence[dict[str, Any]], fields: dict[str, str]) -> list[str]:
    """A file for each kind of task: our_KIND, with these lines beside those that all have."""
    data = folder / "data.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, more in fields.items():
        (folder / f"{kind}.yaml").write_text(_TASK.format(
            kind=kind, data=data, cache=folder / "cache", fields=more))
    return [str(folder / f"{kind}.yaml") for kind in fields]
