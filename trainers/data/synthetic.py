"""Synthetic bank customers for demos and tests: tickets to fine-tune on, policy documents to pre-train on.

Everything follows from a seed. A customer keeps a segment, a channel, a way of writing, a name and a card number
through all tickets, so that records of one customer resemble each other as they do at a real bank.
The prose lies in `synthetic_phrases.py`; here it is varied, filled in and written to files.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from random import Random

from trainers.data import synthetic_phrases as phrases
from trainers.data.synthetic_phrases import TOPICS, Case, Topic

INTENTS: tuple[str, ...] = tuple(TOPICS)
FINANCE_TERMS: dict[str, tuple[str, ...]] = {intent: tuple(topic.glossary) for intent, topic in TOPICS.items()}

CHANNELS = ("app", "e-mail", "phone", "branch")
SEGMENTS = ("retail", "student", "business", "premium")
LONGEST_MESSAGE = 70  # words
VAGUE_SHARE = 0.06  # of the messages; several intents fit each of them

# What a segment asks about three times as often as the others do.
LEANINGS = {
    "retail": ("card_lost", "direct_debit_dispute", "standing_order", "account_closure"),
    "student": ("pin_change", "card_declined", "overdraft_fee", "address_change"),
    "business": ("transfer_limit", "transfer_pending", "currency_exchange", "statement_request"),
    "premium": ("mortgage_rate", "savings_interest", "loan_early_repayment", "fraud_report"),
}


def _money(rng: Random, low: float, high: float, step: float) -> str:
    value = rng.randrange(round(low / step), round(high / step)) * step
    digits = f"{value:,.0f}" if step >= 1 else f"{value:,.2f}"
    return rng.choice(("€{}", "€{}", "€{}", "{} EUR", "{} euros", "£{}")).format(digits)


def _amount(rng: Random) -> str:
    return _money(rng, 15, 300, 0.05) if rng.random() < 0.5 else _money(rng, 40, 2600, 5)


def _date(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.randint(1, 28)} {rng.choice(phrases.MONTHS)}"
    return rng.choice((f"the {rng.randint(4, 20)}th", rng.choice(phrases.WEEKDAYS)))


def _one_of(values: Sequence[str]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(values)


# What a customer may mention: a reply speaks of it only when the message did.
CUSTOMER_SLOTS: dict[str, Callable[[Random], str]] = {
    "age": lambda rng: str(rng.randint(25, 28)),
    "ago": _one_of(phrases.AGO),
    "amount": _amount,
    "bank": _one_of(phrases.BANKS),
    "card": lambda rng: f"{rng.randrange(10_000):04d}",
    "city": _one_of(phrases.CITIES),
    "currency": _one_of(phrases.CURRENCIES),
    "date": _date,
    "home": lambda rng: _money(rng, 90_000, 480_000, 5_000),
    "large": lambda rng: _money(rng, 3_000, 60_000, 500),
    "merchant": _one_of(phrases.MERCHANTS),
    "month": _one_of(phrases.MONTHS),
    "name": _one_of(phrases.NAMES),
    "payee": _one_of(phrases.PAYEES),
    "percent": lambda rng: f"{rng.choice((10, 15, 20, 25, 30, 40))} per cent",
    "place": _one_of(phrases.PLACES),
    "rate": lambda rng: f"{rng.uniform(1.2, 6.9):.2f}%",
    "shop": _one_of(phrases.SHOPS),
    "small": lambda rng: _money(rng, 3, 45, 0.1),
    "street": lambda rng: f"{rng.randint(1, 120)} {rng.choice(phrases.STREETS)}",
    "trip": _one_of(phrases.TRIPS),
    "wait": _one_of(phrases.WAITS),
    "year": lambda rng: str(rng.randint(2016, 2024)),
    "years": lambda rng: str(rng.choice((5, 10, 12, 15, 20, 25, 30))),
}
# What the bank knows or decides.
BANK_SLOTS: dict[str, Callable[[Random], str]] = {
    "cutoff": _one_of(("3 pm", "4 pm", "5 pm", "6 pm")),
    "days": _one_of(phrases.SMALL_COUNTS),
    "fee": _one_of(("€5", "€7.50", "€10", "€12", "€15", "€20", "€25")),
    "hours": _one_of(("12", "24", "36", "48", "72")),
    "limit": _one_of(("€1,000", "€2,000", "€2,500", "€5,000", "€10,000")),
    "months": _one_of(("two", "three", "four", "six")),
    "offer": lambda rng: f"{rng.uniform(1.5, 6.5):.2f}%",
    "ref": lambda rng: f"MB-{rng.randrange(10_000, 100_000)}",
    "section": lambda rng: f"{rng.randint(1, 12)}.{rng.randint(1, 30)}",
    "segment": _one_of(SEGMENTS),
}
SLOTS = CUSTOMER_SLOTS | BANK_SLOTS

_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{([a-z]+)(\d?)\}")
_SENTENCE_START = re.compile(r"""(^|[.?!]"? "?|: ")([a-z])""")


def _vary(template: str, rng: Random) -> str:
    """Chooses one branch of every `(a|b|)`, innermost first."""
    while "(" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return template


@dataclass
class _Facts:
    """The values of one ticket or document: drawn at first use, the same ever after."""

    rng: Random
    fixed: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        return _tidy(_SLOT.sub(self._value, text))

    def know_all_of(self, template: str) -> bool:
        """Whether the customer has mentioned whatever this reply template speaks of."""
        return all(slot in BANK_SLOTS or slot + digit in self.drawn for slot, digit in _SLOT.findall(template))

    def _value(self, match: re.Match[str]) -> str:
        key = match[1] + match[2]
        if key not in self.drawn:
            self.drawn[key] = self.fixed.get(key) or self._fresh(match[1])
        return self.drawn[key]

    def _fresh(self, slot: str) -> str:
        taken = {value for key, value in self.drawn.items() if key.rstrip("0123456789") == slot}
        while (value := SLOTS[slot](self.rng)) in taken:
            pass
        return value


def _tidy(text: str) -> str:
    text = re.sub(r" +([,.?!])", r"\1", " ".join(text.split()))
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


@dataclass(frozen=True)
class Ticket:
    """One message of a customer and the bank's reply. `terms` are the domain terms that stand in the reply."""

    customer_id: str
    channel: str
    segment: str
    intent: str
    message: str
    reply: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class _Customer:
    id: str
    segment: str
    channel: str
    habit: str
    fixed: dict[str, str]
    activity: float


def generate_tickets(count: int, *, seed: int) -> Iterator[Ticket]:
    """Yields `count` tickets of about count / 4 customers, of whom a few write often and most write once or twice."""
    rng = Random(f"tickets {seed}")
    customers = _make_customers(max(1, count // 4), rng)
    extra = rng.choices(customers, cum_weights=list(accumulate(c.activity for c in customers)), k=count)
    visits = (customers + extra)[:count]
    rng.shuffle(visits)
    for customer in visits:
        yield _make_ticket(customer, rng)


def _make_customers(count: int, rng: Random) -> list[_Customer]:
    return [_make_customer(number, rng) for number in rng.sample(range(1_000_000), count)]


def _make_customer(number: int, rng: Random) -> _Customer:
    return _Customer(
        id=f"C-{number:06d}",
        segment=rng.choices(SEGMENTS, (55, 15, 18, 12))[0],
        channel=rng.choices(CHANNELS, (45, 25, 20, 10))[0],
        habit=rng.choices(("tidy", "hasty", "lower case", "bare"), (62, 16, 12, 10))[0],
        fixed={slot: CUSTOMER_SLOTS[slot](rng) for slot in ("card", "city", "name")},
        activity=min(15.0, rng.paretovariate(1.1)),
    )


def _make_ticket(customer: _Customer, rng: Random) -> Ticket:
    leanings = LEANINGS[customer.segment]
    intent = rng.choices(INTENTS, [3 if intent in leanings else 1 for intent in INTENTS])[0]
    channel = customer.channel if rng.random() < 0.7 else rng.choice(CHANNELS)
    budget = min(LONGEST_MESSAGE, round(rng.lognormvariate(2.95, 0.65)))
    message, reply = _exchange(intent, customer, channel, budget, rng)
    if channel in ("app", "e-mail"):
        message = _type_as(customer.habit, message, rng)
    return Ticket(customer.id, channel, customer.segment, intent, message, reply, find_terms(reply))


def _exchange(intent: str, customer: _Customer, channel: str, budget: int, rng: Random) -> tuple[str, str]:
    """A message of about `budget` words and the reply to it."""
    topic = TOPICS[intent]
    case = rng.choice(topic.cases)
    mood = rng.choice(("neutral", "polite", "hurried") if topic.calm else tuple(phrases.MOOD_BEFORE))
    concern = _vary(rng.choice(_concerns(intent, case, budget, rng)), rng)
    around = _frame(intent, case, customer.segment, channel, mood, rng)
    facts = _Facts(rng, customer.fixed)
    message = facts.fill(_compose(concern, around, budget))
    return message, facts.fill(_answer(topic, case, concern, mood, facts, rng))


def _concerns(intent: str, case: Case, budget: int, rng: Random) -> Sequence[str]:
    if rng.random() < VAGUE_SHARE:
        return [line for intents, lines in phrases.VAGUE.items() if intent in intents for line in lines]
    return case.short if budget < 11 else case.asks


_CONCERN = 3  # its place in a message, among the places below


def _frame(intent: str, case: Case, segment: str, channel: str, mood: str, rng: Random) -> list[tuple[int, str]]:
    """What may stand around the concern, each with its place in the message, in random order."""
    around = [
        (0, rng.choice(phrases.GREETINGS[channel])),
        (1, rng.choice(phrases.MOOD_BEFORE[mood])),
        (2, rng.choice(phrases.BACKGROUND[segment])),
        *((4, detail) for detail in rng.sample(case.details, 3)),
        (5, _aside(intent, rng)),
        (6, rng.choice(phrases.MOOD_AFTER[mood])),
        (7, rng.choice(phrases.SIGN_OFFS[channel])),
    ]
    rng.shuffle(around)
    return [(place, _vary(template, rng)) for place, template in around]


def _aside(intent: str, rng: Random) -> str:
    """Something else that the customer mentions, in the words of other intents."""
    if rng.random() < 0.5:
        return rng.choice(phrases.ASIDES[rng.choice([area for area in phrases.ASIDES if area != TOPICS[intent].area])])
    other = rng.choice([topic for name, topic in TOPICS.items() if name != intent])
    quoted = _vary(rng.choice(rng.choice(other.cases).short), rng).rstrip("?")
    return rng.choice(phrases.OTHER_MATTERS).replace("{other}", _SLOT.sub(r"{\g<1>8}", quoted))


def _compose(concern: str, around: list[tuple[int, str]], budget: int) -> str:
    """The concern with as much around it as fits into `budget` words."""
    parts = [(_CONCERN, concern)]
    words = len(concern.split())
    for place, text in around:
        if words + len(text.split()) <= budget:
            parts.append((place, text))
            words += len(text.split())
    return _join([text for _, text in sorted(parts, key=itemgetter(0))])


def _join(parts: list[str]) -> str:
    joined = parts[0]
    for part in parts[1:]:
        if joined.endswith(","):
            joined += " " + _lower_first(part)
        else:
            joined += (" " if joined[-1] in ".!?" else ". ") + part
    return joined


def _lower_first(text: str) -> str:
    keep = text.startswith(("I ", "SEPA", "PIN"))
    return text if keep else text[0].lower() + text[1:]


def _answer(topic: Topic, case: Case, concern: str, mood: str, facts: _Facts, rng: Random) -> str:
    """One to four sentences, of which one answers the concern with a domain term."""

    def choose(templates: Iterable[str]) -> str:
        return _vary(rng.choice(_suitable(templates, concern, facts)), rng)

    sentences = [choose(case.answers)]
    if rng.random() < 0.5:
        sentences.insert(0, choose(phrases.REPLY_OPENERS[mood]))
    if rng.random() < 0.65:
        sentences.append(choose(topic.steps))
    if rng.random() < 0.3:
        sentences.append(choose(phrases.REPLY_CLOSERS))
    return " ".join(sentences)


def _suitable(templates: Iterable[str], concern: str, facts: _Facts) -> list[str]:
    """The templates made for this concern by their `[word/word]`, else those made for any."""
    special: list[str] = []
    general: list[str] = []
    for template in templates:
        words, _, text = template[1:].partition("]") if template.startswith("[") else ("", "", template)
        if facts.know_all_of(text) and any(f" {word}" in f" {concern.lower()}" for word in words.split("/")):
            (special if words else general).append(text)
    return special or general


def _type_as(habit: str, text: str, rng: Random) -> str:
    """The text as somebody with this habit would type it: in lower case, without full stops, with slips."""
    if habit == "hasty":
        return _misspell(text, rng)
    if habit == "bare":
        text = re.sub(r"[.,!?;:](?= |$)", "", text)
    return text if habit == "tidy" else text.lower()


def _misspell(text: str, rng: Random) -> str:
    words = text.split(" ")
    long_words = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    for i in rng.sample(long_words, min(len(long_words), 1 + len(words) // 20)):
        word, at = words[i], rng.randrange(1, len(words[i]) - 2)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[i] = rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
    return " ".join(words)


_TERMS = {term.lower(): term for terms in FINANCE_TERMS.values() for term in terms}
_ANY_TERM = re.compile(rf"\b({'|'.join(map(re.escape, sorted(_TERMS, key=len, reverse=True)))})\b", re.IGNORECASE)


def find_terms(text: str) -> tuple[str, ...]:
    """The domain terms of any intent that stand in `text`, in order, each once; case does not matter."""
    return tuple(dict.fromkeys(_TERMS[match.lower()] for match in _ANY_TERM.findall(text)))


# Which kinds of paragraph a document is made of.
_DOCUMENT_STYLES = (("rules", "rules", "rules", "example"), ("question", "question", "rules"), ("rules", "example"))


def generate_policy_documents(count: int, *, seed: int) -> Iterator[str]:
    """Yields `count` plain-text policies, guides and lists of questions: a title line, then paragraphs."""
    rng = Random(f"policies {seed}")
    for _ in range(count):
        yield _make_document(rng.choice(INTENTS), rng)


def _make_document(intent: str, rng: Random) -> str:
    topic = TOPICS[intent]
    facts = _Facts(rng, {"subject": topic.subject})
    title = facts.fill(_vary(rng.choice(phrases.DOCUMENT_TITLES), rng))
    rules = _shuffle_rules(topic, rng)
    style = rng.choice(_DOCUMENT_STYLES)
    opening = [rng.choice(phrases.INTRODUCTIONS), rules.pop(), rules.pop()]
    paragraphs = [facts.fill(_vary(" ".join(opening), rng))]
    target = rng.triangular(90, 250, 170)
    while sum(len(paragraph.split()) for paragraph in paragraphs) < target:
        paragraphs.append(_make_paragraph(rng.choice(style), intent, rules, facts, rng))
    return "\n\n".join([title, *paragraphs])


def _shuffle_rules(topic: Topic, rng: Random) -> list[str]:
    """Sentences to pop from the end: those of the topic with a few general ones among them, then the rest."""
    general = rng.sample(phrases.GENERAL_RULES, len(phrases.GENERAL_RULES))
    special = [*topic.rules, *topic.glossary.values(), *general[:3]]
    return general[3:] + rng.sample(special, len(special))


def _make_paragraph(kind: str, intent: str, rules: list[str], facts: _Facts, rng: Random) -> str:
    if kind == "rules":
        sentences = [rules.pop() for _ in range(rng.randint(2, 4))]
        return facts.fill(_vary(" ".join(sentences), rng))
    asker = _make_customer(0, rng)
    channel = rng.choice(("app", "e-mail"))
    question, answer = _exchange(intent, asker, channel, rng.randint(6, 34), rng)
    frame = _vary(rng.choice(phrases.EXAMPLES if kind == "example" else phrases.QUESTION_AND_ANSWER), rng)
    facts = _Facts(rng, asker.fixed | {"segment": asker.segment, "question": question, "answer": answer})
    return facts.fill(frame).replace(" // ", "\n")


@dataclass(frozen=True)
class DemoData:
    """The files of one demo: text to pre-train on, tickets and intents split by customer, one domain term a line."""

    policies: Path
    tickets_train: Path
    tickets_test: Path
    intents_train: Path
    intents_test: Path
    terms: Path


def write_demo_data(folder: Path, *, seed: int = 0, tickets: int = 6000, documents: int = 3000) -> DemoData:
    """Writes all demo files into `folder`, which is made if missing. About a tenth of the customers go to test."""
    folder.mkdir(parents=True, exist_ok=True)
    data = DemoData(
        policies=folder / "policies.jsonl",
        tickets_train=folder / "tickets_train.jsonl",
        tickets_test=folder / "tickets_test.jsonl",
        intents_train=folder / "intents_train.csv",
        intents_test=folder / "intents_test.csv",
        terms=folder / "terms.txt",
    )
    train: list[Ticket] = []
    test: list[Ticket] = []
    for ticket in generate_tickets(tickets, seed=seed):
        (test if is_test_customer(ticket.customer_id) else train).append(ticket)
    _write_jsonl(data.policies, ({"text": text} for text in generate_policy_documents(documents, seed=seed)))
    _write_jsonl(data.tickets_train, map(_as_conversation, train))
    _write_jsonl(data.tickets_test, map(_as_conversation, test))
    _write_intents(data.intents_train, train)
    _write_intents(data.intents_test, test)
    data.terms.write_text("".join(f"{term}\n" for term in sorted(_TERMS.values())), encoding="utf-8")
    return data


def is_test_customer(customer_id: str) -> bool:
    """Whether all tickets of this customer are test data: one in ten, by a hash that never changes."""
    return int(hashlib.sha256(customer_id.encode()).hexdigest(), 16) % 10 == 0


def _as_conversation(ticket: Ticket) -> dict[str, object]:
    return {
        "customer_id": ticket.customer_id,
        "channel": ticket.channel,
        "segment": ticket.segment,
        "intent": ticket.intent,
        "terms": list(ticket.terms),
        "messages": [
            {"role": "user", "content": ticket.message},
            {"role": "assistant", "content": f"{ticket.intent}: {ticket.reply}"},
        ],
    }


def _write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_intents(path: Path, tickets: Iterable[Ticket]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label", "customer_id", "segment"))
        writer.writerows((ticket.message, ticket.intent, ticket.customer_id, ticket.segment) for ticket in tickets)
