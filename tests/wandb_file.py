"""Reads the transaction log of an offline wandb run: LevelDB's log format around protocol buffers."""

import json
import struct
from pathlib import Path

_BLOCK = 32768
_HEADER = 7
_FULL, _LAST = 1, 4


def records(path: Path):
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    offset, parts = _HEADER, b""
    while offset + _HEADER <= len(data):
        if _BLOCK - offset % _BLOCK < _HEADER:
            offset += _BLOCK - offset % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + _HEADER : offset + _HEADER + length]
        offset += _HEADER + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class OfflineRun:
    """What an offline run recorded: the run itself, its config, history rows and summary."""

    def __init__(self, stage_dir: Path, number: int = 0):
        self.path = sorted((stage_dir / "wandb").glob("offline-run-*/run-*.wandb"))[number]
        self.config, self.history, self.summary, self.step_metrics = {}, [], {}, {}
        for record in records(self.path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "metric":
                metric = record.metric
                self.step_metrics[metric.name or metric.glob_name] = metric.step_metric
        self.config.pop("_wandb", None)


def _items(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
