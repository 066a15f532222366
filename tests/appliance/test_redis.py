from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from appliance import broker, node

if TYPE_CHECKING:
    from appliance.settings import Settings
    from tests.appliance.servers import RedisServer


def test_the_embedded_redis_listens_on_a_private_unix_socket_alone(
    node_settings: Settings, clinical_redis: RedisServer
) -> None:
    socket = node.redis_socket(node_settings, "clinical")
    assert len(os.fsencode(socket)) < 100
    status = socket.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    with broker.connect(node.redis_url(node_settings, "clinical")) as client:
        wanted = {"port": "0", "maxmemory-policy": "noeviction", "appendonly": "yes"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def until_written(url: str) -> None:
    """Wait until the append-only file has all: a disk that is busy has Redis wait for it, for two seconds."""
    deadline = time.monotonic() + 30.0
    with broker.connect(url) as client:
        while client.info("persistence")["aof_buffer_length"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_embedded_redis_remembers_what_it_was_given_before_it_was_killed(
    node_settings: Settings, clinical_redis: RedisServer
) -> None:
    url = node.redis_url(node_settings, "clinical")
    assert broker.send(url, broker.DELIVER_RESULT, broker.CLINICAL_QUEUE, "a" * 32)
    until_written(url)
    clinical_redis.kill()
    clinical_redis.start()
    assert broker.backlog(url, (broker.CLINICAL_QUEUE,)) == 1


def test_a_full_redis_refuses_and_drops_nothing(node_settings: Settings, clinical_redis: RedisServer) -> None:
    url = node.redis_url(node_settings, "clinical")
    assert broker.send(url, broker.DELIVER_RESULT, broker.CLINICAL_QUEUE, "a" * 32)
    with broker.connect(url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(ResponseError, match="maxmemory"):
            client.set("x", "y" * 10)
    assert not broker.send(url, broker.DELIVER_RESULT, broker.CLINICAL_QUEUE, "b" * 32)
    assert broker.backlog(url, (broker.CLINICAL_QUEUE,)) == 1


def test_a_broker_that_is_away_is_said_to_be_away(node_settings: Settings) -> None:
    assert broker.backlog(node.redis_url(node_settings, "clinical"), (broker.CLINICAL_QUEUE,)) is None


def test_a_wake_up_call_says_whether_it_was_sent(
    node_settings: Settings, clinical_redis: RedisServer
) -> None:
    url = node.redis_url(node_settings, "clinical")
    wake = broker.ClinicalWaker(url)
    assert wake("infer", "a" * 32)
    assert not wake("no-such-kind", "a" * 32)
    assert (broker.backlog_of(url, "infer"), broker.backlog_of(url, "deliver")) == (1, 0)
    clinical_redis.kill()
    assert not wake("infer", "b" * 32)
    assert broker.backlog_of(url, "infer") is None
