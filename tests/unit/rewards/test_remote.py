"""A server that scores: real requests on this machine, and every way in which it can be at fault."""

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from prefopt.errors import DataError, EnvironmentFault
from prefopt.records import Message, Prompt
from prefopt.rewards.remote import SHOWN, TRIES, RemoteScorer
from tests.reward_server import Reply, Server, reward_server

PROMPT: Prompt = (Message("system", "be brief"), Message("user", "how was it?"))
TOKEN = "s3cret-token-of-the-test"


@pytest.fixture
def server() -> Iterator[Server]:
    with reward_server() as made:
        yield made


def scorer(server: Server, **options: object) -> RemoteScorer:
    return RemoteScorer(server.url, **{"name": "the server", "pause": 0.01, "timeout": 5.0, **options})


def values(scoring: RemoteScorer, *texts: str) -> list[float]:
    return [score.value for score in scoring.score([PROMPT] * len(texts), texts)]


@pytest.mark.parametrize("key", ["scores", "rewards"])
def test_it_is_asked_in_parts_and_answers_in_order(server: Server, key: str) -> None:
    server.key = key
    assert values(scorer(server, batch_size=2), "a", "", "ccc", "ü", "eeeee") == [1, 0, 3, 1, 5]
    assert [request["completions"] for request in server.asked] == [["a", ""], ["ccc", "ü"], ["eeeee"]]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how was it?"}]
    assert server.asked[0]["prompts"] == [messages, messages] and server.asked[0]["path"] == "/score"
    assert server.headers[0]["Content-Type"] == "application/json" and "Authorization" not in server.headers[0]
    assert values(scorer(server)) == [] and len(server.asked) == 3


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_that_fails_twice_is_asked_a_third_time(server: Server, status: int) -> None:
    server.replies = [Reply(status), Reply(status)]
    assert values(scorer(server), "four") == [4] and len(server.asked) == 3


def test_one_that_breaks_off_is_asked_again(server: Server) -> None:
    server.replies = [Reply(body=b'{"scores": [1', cut=True)]
    assert values(scorer(server), "four") == [4] and len(server.asked) == 2


def test_one_that_never_recovers_is_an_environment_fault(server: Server) -> None:
    server.replies = [Reply(503)] * TRIES
    with pytest.raises(EnvironmentFault, match=f"the server gave no scores in {TRIES} tries: HTTP 503") as caught:
        values(scorer(server), "a")
    assert len(server.asked) == TRIES and caught.value.exit_code == 3


def test_one_that_hangs_is_waited_for_as_long_as_said(server: Server) -> None:
    release = threading.Event()
    server.replies = [Reply(wait=release)] * TRIES
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match=r"no answer within 0\.1 seconds"):
        values(scorer(server, timeout=0.1), "a")
    assert 0.1 * TRIES <= time.monotonic() - began < 5
    release.set()


def test_one_that_is_not_there_is_an_environment_fault() -> None:
    with reward_server() as gone:
        pass
    with pytest.raises(EnvironmentFault, match="refused"):
        values(scorer(gone), "a")


@pytest.mark.parametrize("after", ["0.3", "date"])
def test_it_is_left_alone_as_long_as_it_asks_for(server: Server, after: str) -> None:
    # A date has whole seconds, so this one is between one and two of them away.
    value = formatdate(time.time() + 2, usegmt=True) if after == "date" else after
    server.replies = [Reply(429, headers={"Retry-After": value})]
    began = time.monotonic()
    assert values(scorer(server), "a") == [1]
    assert time.monotonic() - began >= (0.8 if after == "date" else 0.3)


def test_pauses_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("prefopt.rewards.remote.time.sleep", pauses.append)
    server.replies = [Reply(503), Reply(503), Reply(503, headers={"Retry-After": "9999"}), Reply(503)]
    values(scorer(server, pause=1.0), "a")
    assert pauses == [1, 2, 120, 8]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(body=b"<html>hello</html>"), "answered no JSON: <html>hello"),
        (Reply(body=b"\xff\xfe"), "no JSON"),
        (Reply(body=b"[1.0]"), r'no \{"scores": \[…\]\}: \[1.0\]'),
        (Reply(body=b'{"score": [1.0]}'), "no {"),
        (Reply(body=b'{"scores": 1.0}'), "no {"),
        (Reply(body=b'{"scores": []}'), "0 scores for 1 completions"),
        (Reply(body=b'{"scores": [1, 2]}'), "2 scores for 1 completions"),
        (Reply(body=b'{"scores": [null]}'), "null, which is no finite number"),
        (Reply(body=b'{"scores": [NaN]}'), "NaN, which is no finite number"),
        (Reply(body=b'{"scores": [true]}'), "true, which"),
        (Reply(body=b'{"scores": ["1"]}'), '"1", which'),
        (Reply(body=b'{"scores": [1' + b"0" * 400 + b"]}"), "which is no finite number"),
        (Reply(400, b"what is a prompt?"), "refused the request with HTTP 400 Bad Request: what is a prompt"),
        (Reply(401, b"who are you?"), "HTTP 401 Unauthorized: who are you"),
        (Reply(404, b"x" * 999), f"HTTP 404 Not Found: {'x' * SHOWN}$"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_shown_and_not_asked_for_again(server: Server, reply: Reply, text: str) -> None:
    server.replies = [reply]
    with pytest.raises(DataError) as caught:
        values(scorer(server), "a")
    assert caught.match(text) or pytest.fail(str(caught.value)), len(server.asked) == 1
    assert len(caught.value.message) < SHOWN + 200


def test_a_redirect_is_told_and_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    with reward_server() as other:
        server.replies = [Reply(302, headers={"Location": other.url})]
        with pytest.raises(DataError, match="HTTP 302: it is at http://127"):
            values(scorer(server, token_env="REWARD_TOKEN"), "a")
        assert other.asked == []


class TestToken:
    """The value of `token_env`: sent, and nowhere else."""

    def test_it_is_sent_and_shown_nowhere(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REWARD_TOKEN", f" {TOKEN}\n")
        scoring = scorer(server, token_env="REWARD_TOKEN")
        assert values(scoring, "a") == [1]
        assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"
        for reply in (Reply(403, f"no such token: {TOKEN}".encode()), Reply(body=f'"{TOKEN}"'.encode())):
            server.replies = [reply]
            with pytest.raises(DataError, match="redacted") as caught:
                values(scoring, "a")
            assert TOKEN not in str(caught.value)

    @pytest.mark.parametrize("value", [None, "", "  "])
    def test_a_variable_that_is_not_set_is_named(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        monkeypatch.delenv("REWARD_TOKEN", raising=False)
        if value is not None:
            monkeypatch.setenv("REWARD_TOKEN", value)
        with pytest.raises(EnvironmentFault, match="REWARD_TOKEN, which 'token_env' names, is not set"):
            scorer(server, token_env="REWARD_TOKEN")

    def test_what_no_header_can_have_is_refused_unseen(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REWARD_TOKEN", "hunter2\nX-Evil: 1")
        with pytest.raises(EnvironmentFault, match="REWARD_TOKEN is no token") as caught:
            scorer(server, token_env="REWARD_TOKEN")
        assert "hunter2" not in str(caught.value)


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with reward_server(lambda text: -1.0) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/score"))
        assert values(scorer(server), "abc") == [3]
        far = RemoteScorer("http://rewards.example/score", name="far", pause=0.01)
        assert values(far, "abc") == [-1] and proxy.asked[0]["path"] == "http://rewards.example/score"
