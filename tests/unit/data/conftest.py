from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

Rows = list[dict[str, Any]]


def _csv(rows: Rows) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
        )
    return text.getvalue().encode()


def _parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _arrow(rows: Rows, new: Callable[..., Any]) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "rows.json": lambda rows: json.dumps(rows).encode(),
    "data.json": lambda rows: json.dumps({"data": rows}, indent=1).encode(),
    "lines.json": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "rows.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "windows.jsonl": lambda rows: b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\r\n" for row in rows).encode(),
    "rows.csv": _csv,
    "excel.csv": lambda rows: b"\xef\xbb\xbf" + _csv(rows),
    "rows.parquet": _parquet,
    "stream.arrow": lambda rows: _arrow(rows, ipc.new_stream),
    "file.arrow": lambda rows: _arrow(rows, ipc.new_file),
}
CONTAINERS = [*WRITERS, *(f"{name}.gz" for name in WRITERS)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Rows], Path]:
    """Writes rows into a container of the given name."""

    def write_rows(name: str, rows: Rows) -> Path:
        content = WRITERS[name.removesuffix(".gz")](rows)
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write_rows


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON lines and returns the path for a `DataSpec`."""

    def write_rows(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows
