import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainers.data.synthetic import (
    CHANNELS,
    FINANCE_TERMS,
    INTENTS,
    SEGMENTS,
    DemoData,
    Ticket,
    generate_policy_documents,
    generate_tickets,
    write_demo_data,
)
from trainers.data.synthetic_phrases import TOPICS


@pytest.fixture(scope="module")
def tickets() -> list[Ticket]:
    return list(generate_tickets(4000, seed=0))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(generate_policy_documents(1000, seed=0))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("demo"), tickets=1000, documents=50)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _count_words(text: str) -> int:
    return len(text.split())


def test_a_seed_gives_the_same_tickets_and_documents_again() -> None:
    assert list(generate_tickets(200, seed=7)) == list(generate_tickets(200, seed=7))
    assert list(generate_policy_documents(20, seed=7)) == list(generate_policy_documents(20, seed=7))


def test_another_seed_gives_other_tickets_and_documents() -> None:
    ours, theirs = ({ticket.message for ticket in generate_tickets(200, seed=seed)} for seed in (0, 1))
    assert len(ours & theirs) < 10
    assert not set(generate_policy_documents(20, seed=0)) & set(generate_policy_documents(20, seed=1))


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_as_many_tickets_come_as_were_asked_for(count: int) -> None:
    assert len(list(generate_tickets(count, seed=0))) == count


def test_every_intent_channel_and_segment_is_common(tickets: list[Ticket]) -> None:
    assert len(INTENTS) == 16
    for values, known in (
        ([ticket.intent for ticket in tickets], INTENTS),
        ([ticket.channel for ticket in tickets], CHANNELS),
        ([ticket.segment for ticket in tickets], SEGMENTS),
    ):
        counts = Counter(values)
        assert set(counts) == set(known)
        assert min(counts.values()) > len(tickets) / 40


def test_a_few_customers_write_often_and_most_write_seldom(tickets: list[Ticket]) -> None:
    counts = sorted(Counter(ticket.customer_id for ticket in tickets).values())
    assert len(counts) == pytest.approx(1000, rel=0.05)
    assert counts[len(counts) // 2] <= 3
    assert 10 <= counts[-1] <= 60


def test_a_customer_stays_in_one_segment(tickets: list[Ticket]) -> None:
    segments = {(ticket.customer_id, ticket.segment) for ticket in tickets}
    assert len(segments) == len({ticket.customer_id for ticket in tickets})


def test_messages_seldom_repeat(tickets: list[Ticket]) -> None:
    assert len({ticket.message for ticket in tickets}) > 0.97 * len(tickets)


def test_messages_run_from_four_words_to_a_long_story(tickets: list[Ticket]) -> None:
    lengths = sorted(_count_words(ticket.message) for ticket in tickets)
    assert lengths[0] >= 4
    assert lengths[len(lengths) // 10] < 12
    assert 15 < lengths[len(lengths) // 2] < 28
    assert lengths[-len(lengths) // 20] > 45
    assert lengths[-1] <= 80


def test_one_keyword_does_not_give_the_intent_away(tickets: list[Ticket]) -> None:
    for word in ("card", "transfer", "account", "fee", "rate", "interest", "payment", "statement"):
        intents = Counter(ticket.intent for ticket in tickets if word in ticket.message.lower())
        assert intents.most_common(1)[0][1] < 0.75 * intents.total(), word


def test_the_terms_of_a_ticket_are_those_of_its_intent_and_stand_in_the_reply(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        assert set(ticket.terms) & set(FINANCE_TERMS[ticket.intent]), ticket
        assert all(term.lower() in ticket.reply.lower() for term in ticket.terms), ticket


def test_every_domain_term_is_used_in_some_reply(tickets: list[Ticket]) -> None:
    used = Counter(term for ticket in tickets for term in ticket.terms)
    assert all(used[term] >= 5 for terms in FINANCE_TERMS.values() for term in terms), used


def test_each_intent_has_three_to_five_terms_and_no_term_hides_in_another() -> None:
    assert all(3 <= len(terms) <= 5 for terms in FINANCE_TERMS.values())
    every_term = [term.lower() for terms in FINANCE_TERMS.values() for term in terms]
    assert not [(one, other) for one in every_term for other in every_term if one != other and one in other]


def test_each_intent_has_many_ways_to_ask_and_many_policy_sentences() -> None:
    for topic in TOPICS.values():
        assert sum(len(case.asks) for case in topic.cases) >= 12
        assert len(topic.rules) >= 10


def test_replies_have_one_to_four_sentences(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        assert 1 <= sum(word[-1] in ".?!" for word in ticket.reply.split()) <= 4, ticket.reply


def test_no_template_mark_is_left_in_the_text(tickets: list[Ticket], documents: list[str]) -> None:
    for text in [ticket.message + ticket.reply for ticket in tickets] + documents:
        assert not set("{}|[]()/\\") & set(text), text
        assert "  " not in text, text


def test_documents_are_long_enough_and_never_the_same(documents: list[str]) -> None:
    assert len(set(documents)) == len(documents)
    assert all(80 <= _count_words(text) <= 350 for text in documents)
    assert all("\n\n" in text for text in documents)


def test_documents_speak_of_every_term_and_quote_customers(documents: list[str]) -> None:
    library = "\n".join(documents).lower()
    assert all(library.count(term.lower()) >= 5 for terms in FINANCE_TERMS.values() for term in terms)
    assert sum("Q: " in text or '"' in text for text in documents) > len(documents) / 3


def test_documents_use_most_words_of_the_messages(tickets: list[Ticket], documents: list[str]) -> None:
    common = Counter(word for ticket in tickets for word in ticket.message.lower().split() if word.isalpha())
    library = set("\n".join(documents).lower().split())
    frequent = {word for word, count in common.items() if count >= 20}
    assert len(frequent & library) > 0.95 * len(frequent)


def test_no_customer_is_on_both_sides_of_the_split(demo: DemoData) -> None:
    paths = (demo.tickets_train, demo.tickets_test)
    train, test = ({row["customer_id"] for row in _read_jsonl(path)} for path in paths)
    assert not train & test
    assert 0.05 < len(test) / len(train | test) < 0.16


def test_a_conversation_names_the_intent_before_the_reply(demo: DemoData) -> None:
    row = _read_jsonl(demo.tickets_train)[0]
    assert list(row) == ["customer_id", "channel", "segment", "intent", "terms", "messages"]
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert assistant["content"].startswith(f"{row['intent']}: ")


@pytest.mark.parametrize("side", ["train", "test"])
def test_intent_tables_hold_the_same_messages_as_the_conversations(demo: DemoData, side: str) -> None:
    columns = ("text", "label", "customer_id", "segment")
    rows = [tuple(row[column] for column in columns) for row in _read_csv(getattr(demo, f"intents_{side}"))]
    tickets = _read_jsonl(getattr(demo, f"tickets_{side}"))
    assert rows == [(t["messages"][0]["content"], t["intent"], t["customer_id"], t["segment"]) for t in tickets]


def test_demo_data_has_all_documents_and_all_terms_in_order(demo: DemoData) -> None:
    assert [list(row) for row in _read_jsonl(demo.policies)] == [["text"]] * 50
    terms = demo.terms.read_text(encoding="utf-8").splitlines()
    assert terms == sorted(term for terms in FINANCE_TERMS.values() for term in terms)


def test_demo_data_is_the_same_byte_for_byte_when_written_again(demo: DemoData, tmp_path: Path) -> None:
    again = write_demo_data(tmp_path / "new" / "folder", tickets=1000, documents=50)
    for name in ("policies", "tickets_train", "tickets_test", "intents_train", "intents_test", "terms"):
        assert getattr(again, name).read_bytes() == getattr(demo, name).read_bytes()
