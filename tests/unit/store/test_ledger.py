"""The ledger keeps what was sampled and judged, whatever happens to the process or the stage."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.records import Message
from prefopt.store.ledger import LEDGER_FILE, Ledger, StoredJudgement, StoredSample, judgement_key, key_of

ROOT = Path(__file__).parents[3]
PROMPT = (Message("user", "what does it cost?"),)


def sample(number: int) -> tuple[tuple[Message, ...], StoredSample]:
    ids = tuple(range(number % 5))  # none for some
    return PROMPT, StoredSample(f"answer {number}", number % 2 == 0, number, ids)


def test_what_was_added_is_found_again_and_stays_as_it_was_first(tmp_path: Path) -> None:
    keys = [key_of("sample", n) for n in range(3000)]
    with Ledger(tmp_path, "pairs") as ledger:
        ledger.add_samples("sft", {key: sample(n) for n, key in enumerate(keys)})
        ledger.add_samples("sft", {keys[7]: sample(8)})
    with Ledger(tmp_path, "other") as ledger:
        found = ledger.samples([*keys, key_of("nobody")])
    assert found == {key: sample(n)[1] for n, key in enumerate(keys)}


def test_scores_and_judgements_keep_their_numbers(tmp_path: Path) -> None:
    with Ledger(tmp_path, "pairs") as ledger:
        ledger.add_scores("gold", {"a": (0.1, 0.0), "b": (-1e300, 2.5)})
        told = {"a": StoredJudgement(PROMPT, "no", "yes", 0.25), "b": StoredJudgement(PROMPT, "no", "yes", None)}
        ledger.add_judgements("people", "which?", told)
        ledger.add_scores("gold", {})
        assert ledger.scores(["a", "b", "c"]) == {"a": 0.1, "b": -1e300}
        assert ledger.judgements(["b", "a"]) == {"a": 0.25, "b": None}


def test_a_judgement_is_the_same_in_whichever_order_it_is_asked() -> None:
    one, first = judgement_key(PROMPT, "yes", "no", "which?", ["gold"])
    other, second = judgement_key(PROMPT, "no", "yes", "which?", ["gold"])
    assert one == other and first is not second
    for prompt, question, judge in ((PROMPT * 2, "which?", "gold"), (PROMPT, "why?", "gold"), (PROMPT, "which?", "x")):
        assert judgement_key(prompt, "yes", "no", question, [judge])[0] != one


def test_keys_do_not_run_into_each_other() -> None:
    assert key_of("ab", "c") != key_of("a", "bc") != key_of(["a", "bc"])


def test_a_kill_leaves_whole_transactions_only(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from prefopt.records import Message;"
        "from prefopt.store.ledger import Ledger, StoredSample, key_of\n"
        "ledger = Ledger(Path(sys.argv[1]), 'pairs'); n = 0\n"
        "while True:\n"
        "    rows = {key_of(n, i): ((Message('user', 'q'),), StoredSample(str(n), True, n)) for i in range(50)}\n"
        "    ledger.add_samples('sft', rows); n += 1; print(n, flush=True)\n"
    )
    for wanted in (1, 5, 20):
        folder = tmp_path / str(wanted)
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        told = 0
        while told < wanted:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout.read().splitlines() if line.isdigit())])
        process.wait()
        process.stdout.close()
        with Ledger(folder, "pairs") as ledger:
            kept = [len(ledger.samples([key_of(n, i) for i in range(50)])) for n in range(told + 3)]
        assert kept[:told] == [50] * told  # what was said to be there is there
        assert set(kept[told:]) <= {0, 50}  # and nothing is there in part


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with Ledger(tmp_path, "pairs") as ledger:
        ledger.add_samples("sft", {key_of(n): sample(n) for n in range(2000)})
    path = tmp_path / LEDGER_FILE
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="move it away"), Ledger(tmp_path, "pairs") as ledger:
        ledger.samples([key_of(n) for n in range(2000)])
    path.write_bytes(b"this is no database, whatever its name says" * 200)
    with pytest.raises(IntegrityError, match=LEDGER_FILE):
        Ledger(tmp_path, "pairs")


def test_a_ledger_without_token_ids_is_read_and_goes_on(tmp_path: Path) -> None:
    """What it has is neither sampled nor judged again."""
    database = sqlite3.connect(tmp_path / LEDGER_FILE)
    database.executescript(
        "CREATE TABLE samples (key TEXT PRIMARY KEY, prompt TEXT NOT NULL, completion TEXT NOT NULL,"
        " finished INTEGER NOT NULL, tokens INTEGER NOT NULL, policy TEXT NOT NULL, stage TEXT NOT NULL,"
        " created TEXT NOT NULL,"
        " checksum TEXT NOT NULL) WITHOUT ROWID; PRAGMA user_version=2;"
    )
    row = ("k", "[]", "answer", 0, 7, "sft", "pairs", "2025-01-01")
    database.execute(f"INSERT INTO samples VALUES ({','.join('?' * 9)})", (*row, key_of(*row)))
    database.commit()
    database.close()
    for _ in range(2):
        with Ledger(tmp_path, "pairs") as ledger:
            ledger.add_samples("sft", {"k": sample(3), "new": sample(3)})
            assert ledger.samples(["k", "new"]) == {"k": StoredSample("answer", False, 7), "new": sample(3)[1]}
    database = sqlite3.connect(tmp_path / LEDGER_FILE)
    database.execute("UPDATE samples SET ids = '[1]' WHERE key = 'k'")
    database.commit()
    database.close()
    with Ledger(tmp_path, "pairs") as ledger, pytest.raises(IntegrityError, match="has changed"):
        ledger.samples(["k"])


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path, "pairs"):
        pass
    database = sqlite3.connect(tmp_path / LEDGER_FILE)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(IntegrityError, match="another version"):
        Ledger(tmp_path, "pairs")


def test_two_stages_may_write_at_the_same_time(tmp_path: Path) -> None:
    with Ledger(tmp_path, "a") as one, Ledger(tmp_path, "b") as two:
        for n in range(20):
            (one if n % 2 else two).add_samples("sft", {key_of(n): sample(n)})
        assert len(one.samples([key_of(n) for n in range(20)])) == 20


def test_a_folder_that_cannot_be_written_is_the_environments_fault(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).mkdir()
    with pytest.raises(EnvironmentFault, match=LEDGER_FILE):
        Ledger(tmp_path, "pairs")
