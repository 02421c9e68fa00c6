"""What the page changes: once, with its reason where it cannot, and with a line that says who it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
from structlog.testing import capture_logs

import durable
from durable.web._offers import offers
from harness.pages import checkout, visit


def _status(store: Any, run_id: str) -> str | None:
    return durable.status(store, run_id)


def test_a_failed_run_is_retried(played: Any) -> None:
    answer = visit(played).post("/run/retry?id=shipping-1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/run?id=shipping-1&done=retry")
    assert _status(played, "shipping-1") == "interrupted"


def test_a_run_is_retried_from_a_step(played: Any) -> None:
    visitor = visit(played)
    assert visitor.post("/run/retry?id=shipping-1", {"step": "weigh"}).status_code == 303
    page = visitor.get("/run?id=shipping-1&view=events").text
    assert "records were set aside" in page
    assert visitor.post("/run/retry?id=shipping-1", {"step": "no%20such%20step"}).status_code == 400


def test_a_signal_is_sent(played: Any) -> None:
    answer = visit(played).post(
        "/run/signal?id=checkout-2", {"name": "approved", "payload": '{"by": "lena", "euros": 1e16}'}
    )
    assert answer.status_code == 303
    ((sent),) = played.signals("checkout-2")
    assert (sent.name, sent.payload) == ("approved", '{"by":"lena","euros":1e16}')


@pytest.mark.parametrize(
    ("name", "payload"),
    [("", "1"), ("a", "{"), ("a", "lena"), ("a", "[" * 50_000), ("a\0b", "1"), ("durable:end:checkout-2/child", "1")],
)
def test_a_signal_that_is_none_is_refused(shop: Any, name: str, payload: str) -> None:
    answer = visit(shop).post("/run/signal?id=checkout-2", {"name": name, "payload": payload})
    assert answer.status_code == 400
    assert not shop.signals("checkout-2")


def test_a_fork_is_made(played: Any) -> None:
    answer = visit(played).post("/run/fork?id=checkout-1", {"step": "charge", "new_id": "checkout-1/again"})
    assert answer.headers["location"] == "/run?id=checkout-1%2Fagain&done=fork"
    assert "This is the fork" in visit(played).get(answer.headers["location"]).text
    assert visit(played).post(
        "/run/fork?id=checkout-1", {"step": "charge", "new_id": "checkout-1/again"}
    ).status_code in (400, 409)


def test_a_run_is_deleted_by_who_types_its_id(played: Any) -> None:
    visitor = visit(played)
    assert visitor.post("/run/delete?id=checkout-1", {"typed": "checkout"}).status_code == 400
    assert _status(played, "checkout-1") == "completed"
    assert (
        visitor.post("/run/delete?id=checkout-1", {"typed": "checkout-1"}).headers["location"]
        == "/runs?done=delete&n=1"
    )
    assert _status(played, "checkout-1") is None
    assert visitor.post("/run/delete?id=checkout-1", {"typed": "checkout-1"}).status_code == 404


def test_a_run_that_has_moved_meanwhile_is_told_of(played: Any) -> None:
    visitor = visit(played)
    page = visitor.get("/run?id=checkout-2").text
    seen = re.findall(r'name="seen" value="([^"]+)"', page)[0]
    durable.cancel(played, "checkout-2")
    answer = visitor.post("/run/signal?id=checkout-2", {"seen": seen, "name": "x", "payload": "1"})
    assert answer.status_code == 409
    assert "It is cancelled now" in answer.text
    assert not played.signals("checkout-2")


@pytest.mark.parametrize(("action", "run_id", "why"), [("retry", "checkout-1", "It is completed"), ("cancel", "checkout-1", "It has ended"),
                                                       ("retry", "checkout-2", "It goes on by itself"), ("signal", "shipping-1", "nothing would receive")])  # fmt: skip
def test_what_cannot_be_done_says_why(played: Any, action: str, run_id: str, why: str) -> None:
    visitor = visit(played)
    assert why in visitor.get(f"/run?id={run_id}").text  # beside the button that is disabled
    answer = visitor.post(f"/run/{action}?id={run_id}", {"name": "x"})
    assert answer.status_code == 409
    assert why in answer.text


def test_many_are_done_after_their_number_was_said(played: Any) -> None:
    visitor = visit(played)
    chosen = {"id": ["checkout-2", "shipping-1", "gone", "checkout-1", "checkout-2"]}
    asked = visitor.post("/runs/cancel?q=checkout&status=queued", chosen)
    assert asked.status_code == 200
    assert "Cancel 4 runs?" in asked.text
    assert _status(played, "checkout-2") == "queued"
    done = visitor.post("/runs/cancel?q=checkout&status=queued", chosen | {"sure": "yes"})
    assert (done.status_code, done.headers["location"]) == (
        303,
        "/runs?q=checkout&status=queued&done=cancel&n=1&refused=3",
    )
    assert _status(played, "checkout-2") == "cancelled"
    page = visitor.get(done.headers["location"]).text
    assert "1 run was cancelled" in page
    assert "3 refused" in page
    assert 'value="checkout"' in page  # the search is kept


@pytest.mark.parametrize("fields", [{}, {"id": []}, {"id": [f"r-{n}" for n in range(1001)]}])
def test_none_and_too_many_are_refused(shop: Any, fields: Any) -> None:
    assert visit(shop).post("/runs/delete", fields | {"sure": "yes"}).status_code == 400


def test_what_is_no_action_is_refused(shop: Any) -> None:
    assert visit(shop).post("/run/purge?id=checkout-1").status_code == 404
    assert visit(shop).post("/runs/signal", {"id": "checkout-2", "sure": "yes"}).status_code == 400
    assert visit(shop).post("/run/cancel").status_code == 404
    assert visit(shop).post("/run/cancel?id=%00").status_code == 404


def test_each_change_leaves_a_line_that_says_who_it_was(shop: Any) -> None:
    def auth(request: Any) -> Any:
        request.state.durable_user = "lena@example.com"
        return "write"

    visitor = visit(shop, auth=auth)
    with capture_logs() as lines:
        visitor.post("/run/cancel?id=checkout-2")
        visitor.post("/run/fork?id=checkout-1", {"step": "charge", "new_id": "copy"})
        visitor.post("/runs/delete", {"id": ["checkout-1"], "sure": "yes"})
    told = [
        (line["action"], line["run_id"], line["who"], line["via"], line["outcome"])
        for line in lines
        if line["event"] == "action"
    ]
    assert told == [
        ("cancel", "checkout-2", "lena@example.com", "web", "done"),
        ("fork", "checkout-1", "lena@example.com", "web", "done"),
        ("delete", "checkout-1", "lena@example.com", "web", "done"),
    ]


def test_a_run_that_is_being_executed_is_left_alone(played: Any) -> None:
    seen: list[Any] = []

    def look() -> None:
        visitor = visit(played)
        seen.append(visitor.get("/run?id=busy").text)
        seen.append(visitor.post("/run/delete?id=busy", {"typed": "busy"}).status_code)
        seen.append(visitor.post("/run/retry?id=busy").status_code)
        seen.append(visitor.post("/runs/delete", {"id": ["busy"], "sure": "yes"}).headers["location"])

    durable.run(None, durable.workflow(name="busy")(lambda step, _: step("look", look)), id="busy", store=played)
    assert "It is being executed" in seen[0]
    assert seen[1:] == [409, 409, "/runs?done=delete&n=0&refused=1"]
    assert _status(played, "busy") == "completed"


def test_each_state_offers_what_it_allows() -> None:
    possible = {
        state: [
            name
            for name, one in offers(state, may_write=True, read_only=False, has_records=True).items()
            if not one.reason
        ]
        for state in (
            "queued",
            "delayed",
            "running",
            "waiting",
            "due",
            "interrupted",
            "completed",
            "failed",
            "cancelled",
            "unreadable",
        )
    }
    assert possible == {
        "queued": ["cancel", "signal", "fork", "delete"],
        "delayed": ["cancel", "signal", "fork", "delete"],
        "running": ["cancel", "signal", "fork"],
        "waiting": ["cancel", "signal", "fork", "delete"],
        "due": ["cancel", "signal", "fork", "delete"],
        "interrupted": ["retry", "cancel", "signal", "fork", "delete"],
        "completed": ["fork", "delete"],
        "failed": ["retry", "fork", "delete"],
        "cancelled": ["retry", "fork", "delete"],
        "unreadable": ["fork", "delete"],
    }
    assert all(one.reason for one in offers("failed", may_write=False, read_only=False, has_records=True).values())


def test_a_retried_run_goes_on(played: Any) -> None:
    """The page's word is the library's: what it lets go on, the next call completes."""
    visitor = visit(played)
    assert visitor.post("/run/fork?id=checkout-1", {"step": "charge", "new_id": "checkout-9"}).status_code == 303
    assert durable.run(None, checkout, id="checkout-9", store=played) == {"order": "o-7", "parcel": None}


def test_a_queue_is_paused_and_resumed(played: Any) -> None:
    """Its limits and what waits are shown; each change is a line that says who it was."""
    played.write_queue(
        durable.Queue("orders", concurrency=2, partition_concurrency=1, rate=durable.Rate(600, per=60, burst=20))
    )
    visitor = visit(played)
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", visitor.get("/queues").text))
    assert "orders Open 0 of 2 1 1 of each partition, 600 in 1 min, 20 at once Pause" in shown
    with capture_logs() as lines:
        answer = visitor.post("/queue/pause?name=orders")
        assert (answer.status_code, answer.headers["location"]) == (303, "/queues?done=pause")
        assert next(line.paused for line in played.queues())
        assert "The queue was paused" in visitor.get("/queues?done=pause").text
        assert visitor.post("/queue/resume?name=orders").status_code == 303
    assert [(line["action"], line["queue"], line["via"]) for line in lines] == [
        ("pause", "orders", "web"),
        ("resume", "orders", "web"),
    ]
    assert not next(line.paused for line in played.queues())


def test_a_queue_that_is_none_is_not_made_by_pausing_it(played: Any) -> None:
    visitor = visit(played)
    assert visitor.post("/queue/pause?name=oders").status_code == 404
    assert visitor.post("/queue/drop?name=orders").status_code == 404
    assert [line.queue.name for line in played.queues()] == ["orders"]


def test_who_may_only_look_has_no_buttons_for_queues(shop: Any) -> None:
    assert "/queue/pause" in visit(shop).get("/queues").text
    looks = visit(shop, may="read")
    assert "/queue/pause" not in looks.get("/queues").text
    assert looks.post("/queue/pause?name=orders", token=visit(shop).token()).status_code == 403
    assert not next(line.paused for line in shop.queues())
