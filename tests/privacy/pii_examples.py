"""Labelled sentences from a seed: bank messages with valid numbers planted in the ways people write them, and hard negatives.

Check digits are computed here, from the standards, and not by the code under test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits
from uuid import UUID


@dataclass(frozen=True)
class Example:
    """A sentence, and what was planted in it: kind, start, end."""

    text: str
    planted: tuple[tuple[str, int, int], ...] = ()


def _draw(rng: Random, letters: str, count: int) -> str:
    return "".join(rng.choices(letters, k=count))


def _mod_97(text: str) -> int:
    rest = 0
    for character in text:
        value = int(character) if character in digits else ord(character) - ord("A") + 10
        rest = (rest * (100 if value > 9 else 10) + value) % 97
    return rest


def _luhn_digit(payload: str) -> str:
    total = 0
    for position, character in enumerate(reversed(payload)):
        value = int(character) * (2 if position % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


_BBANS = {
    "DE": "n" * 18, "GB": "aaaa" + "n" * 14, "FR": "n" * 10 + "c" * 11 + "nn", "NL": "aaaa" + "n" * 10, "ES": "n" * 20, "NO": "n" * 11,
    "IT": "a" + "n" * 10 + "n" * 12, "CH": "n" * 17, "AT": "n" * 16, "BE": "n" * 12, "PL": "n" * 24, "IE": "aaaa" + "n" * 14,
    "LU": "n" * 16, "SE": "n" * 20, "PT": "n" * 21, "DK": "n" * 14, "FI": "n" * 14, "TR": "n" * 22, "SA": "n" * 20, "CZ": "n" * 20,
}  # fmt: skip


def iban(rng: Random) -> str:
    country = rng.choice(list(_BBANS))
    alphabet = {"n": digits, "a": ascii_uppercase, "c": digits * 5 + ascii_uppercase}
    bban = "".join(rng.choice(alphabet[sort]) for sort in _BBANS[country])
    return f"{country}{98 - _mod_97(bban + country + '00'):02d}{bban}"


def card(rng: Random) -> str:
    prefix, length = rng.choice(
        [("4", 16), ("51", 16), ("55", 16), ("2345", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14), ("3530", 16), ("62", 19)]
    )
    payload = prefix + _draw(rng, digits, length - len(prefix) - 1)
    return payload + _luhn_digit(payload)


def lei(rng: Random) -> str:
    payload = _draw(rng, digits, 4) + "00" + _draw(rng, ascii_uppercase + digits, 11) + rng.choice(ascii_uppercase)
    return f"{payload}{98 - _mod_97(payload + '00'):02d}"


def isin(rng: Random) -> str:
    payload = rng.choice(["US", "DE", "GB", "FR", "XS", "CH", "IE", "LU", "JP"]) + _draw(rng, digits, 9)
    return payload + _luhn_digit("".join(str(int(character, 36)) for character in payload))


def routing(rng: Random) -> str:
    payload = rng.choice(["01", "02", "06", "11", "12", "26", "31", "32", "61"]) + _draw(rng, digits, 6)
    return payload + str(-sum(weight * int(digit) for weight, digit in zip((3, 7, 1, 3, 7, 1, 3, 7), payload, strict=True)) % 10)


def ssn(rng: Random) -> str:
    area = rng.choice([area for area in range(1, 900) if area != 666])
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


def bic(rng: Random) -> str:
    place = rng.choice(["FF", "MM", "2L", "33", "PP", "ZZ", "BE", "22"])
    return _draw(rng, ascii_uppercase, 4) + rng.choice(["DE", "GB", "FR", "US", "CH", "NL", "SE"]) + place + rng.choice(["", "XXX", "500"])


def _grouped(value: str, size: int, separator: str) -> str:
    return separator.join(value[start : start + size] for start in range(0, len(value), size))


def _as_iban(rng: Random) -> str:
    value = iban(rng)
    broken = _grouped(value, 4, " ")
    return rng.choice(
        [
            value,
            value.lower(),
            broken,
            broken,
            broken.lower(),
            _grouped(value, 4, "-"),
            _grouped(value, 4, "."),
            _grouped(value, 4, "\u00a0"),
            f"{value[:2]} {value[2:4]} {_grouped(value[4:], 4, ' ')}",
            broken.replace(" ", "\n", 3).replace("\n", " ", 2),
            _grouped(value, 4, "  "),
        ]
    )


def _as_card(rng: Random) -> str:
    value = card(rng)
    if len(value) in (14, 15):
        return rng.choice([value, f"{value[:4]} {value[4:10]} {value[10:]}", f"{value[:4]}-{value[4:10]}-{value[10:]}"])
    return rng.choice([value, *(_grouped(value, 4, separator) for separator in (" ", " ", "-", ".", "\u00a0", " - ", "\n"))])


def _as_phone(rng: Random) -> str:
    def d(count: int) -> str:
        return _draw(rng, digits, count)

    def n() -> str:
        return rng.choice("23456789")

    area, exchange = n() + rng.choice("0345678") + d(1), n() + rng.choice("0345678") + d(1)
    return rng.choice(
        [
            f"+49 {rng.choice(['151', '170', '30', '89'])} {n()}{d(6)}", f"+49 (0)30 {n()}{d(6)}", f"+4915{d(9)}", f"0049 171 {n()}{d(6)}",
            f"+44 20 7946 {d(4)}", f"+44 7{d(3)} {d(6)}", f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}", f"+1 {area} {exchange} {d(4)}",
            f"+1-{area}-{exchange}-{d(4)}", f"+1 ({area}) {exchange}-{d(4)}", f"+41 44 {d(3)} {d(2)} {d(2)}", f"+91 98{d(3)} {d(5)}",
            f"({area}) {exchange}-{d(4)}", f"{area}-{exchange}-{d(4)}", f"{area}.{exchange}.{d(4)}", f"06 {d(2)} {d(2)} {d(2)} {d(2)}",
            f"06.{d(2)}.{d(2)}.{d(2)}.{d(2)}", f"020 7{d(3)} {d(4)}", f"07{d(3)} {d(6)}", f"07{d(9)}", f"030/{n()}{d(6)}",
            f"0151 {n()}{d(7)}", f"(030) {n()}{d(6)}", f"044 {d(3)} {d(2)} {d(2)}", f"+34 6{d(2)} {d(3)} {d(3)}", f"+86 138 {d(4)} {d(4)}",
        ]
    )  # fmt: skip


def _as_email(rng: Random) -> str:
    first, last = rng.choice(["anna", "j", "O'Brien", "mary-jane", "müller", "K"]), rng.choice(["smith", "rossi", "weber84", "x"])
    domain = rng.choice(["example.com", "mail.example.co.uk", "post.example.de", "exa-mple.io", "EXAMPLE.ORG"])
    sign = rng.choice(["@", "@", "@", "@", "@", "(at)", " [at] "])
    return f"{first}{rng.choice(['.', '_', '', '+bank.'])}{last}{sign}{domain}"


def _as_secret(rng: Random) -> str:
    body = _draw(rng, ascii_letters + digits, 64)
    armour = "-----{} RSA PRIVATE KEY-----"
    return rng.choice(
        [
            "AK" + "IA" + _draw(rng, ascii_uppercase + digits, 16),
            "gh" + "p_" + body[:36],
            "sk" + "_live_" + body[:24],
            "hf" + "_" + body[:34],
            f"{armour.format('BEGIN')}\n{body}\n{body[::-1]}=\n{armour.format('END')}",
            "xo" + "xb-" + _draw(rng, digits, 12) + "-" + body[:24],
            f"ey{'J'}{body[:20]}.ey{'J'}{body[20:50]}.{body[50:]}",
        ]
    )


def _password(rng: Random) -> str:
    return rng.choice(["Sommer2024!", "hunter2", "correct&horse", "tRustNo1", "p4ssw0rd", "abc-12345", "Geheim#7"])


def _spaced_lei(rng: Random) -> str:
    value = lei(rng)
    return rng.choice([value, value, value.lower(), _grouped(value, 4, " ")])


def _as_routing(rng: Random) -> str:
    value = routing(rng)
    return rng.choice([value, value, f"{value[:4]}-{value[4:8]}-{value[8]}", _grouped(value, 3, " ")])


def _account(rng: Random) -> str:
    value = _draw(rng, "123456789", 1) + _draw(rng, digits, rng.randint(6, 11))
    return rng.choice([value, value, _grouped(value, 4, " ") if len(value) % 4 != 1 else value, value[:4] + "-" + value[4:]])


_PLAIN = ("Could you look at {}?", "I sent the money to {} yesterday.", "{} is what the form shows", "It says {}, is that right?",
          "Please use ({}) from now on.", "see below:\n{}\nThanks", "Hello,{} thank you", "old one was {}.", "\"{}\"", "> {}")  # fmt: skip

_POSITIVES: dict[str, tuple[Callable[[Random], str], tuple[str, ...]]] = {
    "IBAN": (
        _as_iban,
        (
            *_PLAIN,
            "IBAN: {}",
            "iban={}&amount=20",
            "My IBAN{}",
            "https://pay.example.com/to/{}?x=1",
            "IBAN {} BIC unknown",
            "on 3 May to {} 50 EUR",
        ),
    ),
    "CARD": (
        _as_card,
        (*_PLAIN, "card {} exp 12/27", "Visa {} cvv 123", "my card number's {} and it was declined 2 times", "card={}", "{} 09/28"),
    ),
    "LEI": (_spaced_lei, (*_PLAIN, "LEI {}", "LEI:{}", "https://search.example.org/#/record/{}", "issuer (LEI {}) is new")),
    "ISIN": (
        lambda rng: rng.choice([str.upper, str.upper, str.lower])(isin(rng)),
        (*_PLAIN, "ISIN {}", "sell 20 x {} at market", "isin={}", "fund/{}/chart"),
    ),
    "ROUTING": (
        _as_routing,
        (
            "routing number {}",
            "ABA {}",
            "Routing: {}",
            "my bank's routing no. is {}",
            "{} is the routing number",
            "RTN#{}",
            "aba routing {} for the wire",
            "For the wire use {} please",
            "ach transfer, {} as before",
        ),
    ),
    "SSN": (lambda rng: ssn(rng), (*_PLAIN, "SSN {}", "my social security number is {}", "ssn: {}", "social {} dob 01/02/1980")),
    "BIC": (
        bic,
        (
            "BIC: {}",
            "BIC {}",
            "SWIFT code {}",
            "swift/bic is {}",
            "IBAN below, BIC {}",
            "The BIC is {}.",
            "SWIFT: {}",
            "{} (BIC)",
            "bic={}",
            "BIC-Code: {}",
        ),
    ),
    "PHONE": (
        _as_phone,
        (
            "Call me on {}",
            "my number is {}",
            "Tel. {}",
            "Tel: {}",
            "please ring {} after 5",
            "mobile {}",
            "reach me at {} today",
            "{} is my phone",
            "Phone {}, thanks",
            "I moved; {} works now",
            "whatsapp {}",
            "tel:{}",
        ),
    ),
    "EMAIL": (_as_email, (*_PLAIN, "mailto:{}", "write to {}.", "<{}>", "e-mail={}", "cc {}; thanks", "Mail: {}!")),
    "ACCOUNT": (
        _account,
        (
            "account {}",
            "account number {}",
            "my account no. is {}",
            "acct #{}",
            "a/c {}",
            "Konto {}",
            "Kontonummer: {}",
            "from account {} to savings",
            "Account number is {}.",
            "the account: {}",
            "acct no {}",
        ),
    ),
    "SECRET": (_as_secret, (*_PLAIN, "token: {}", "use {} for the API", "key={}", "export TOKEN={}")),
}

_PASSWORDS = ("password: {}", "my password is {}", "pwd={}", "Passwort: {}", "the password is {}.", "password {}", '"password": "{}"')


def positives(seed: int, each: int) -> list[Example]:
    """So many sentences of each kind."""
    rng = Random(seed)
    examples = []
    for kind, (make, templates) in _POSITIVES.items():
        for number in range(each):
            template, value = rng.choice(templates), make(rng)
            if kind == "SECRET" and number % 3 == 0:
                template, value = rng.choice(_PASSWORDS), _password(rng)
            start = template.index("{}")
            examples.append(Example(template.replace("{}", value), ((kind, start, start + len(value)),)))
    return examples


def _wrong(value: str) -> str:
    """Another last digit: no checksum holds any more."""
    return value[:-1] + str((int(value[-1]) + 1) % 10)


def negatives(seed: int, count: int) -> list[Example]:
    """Sentences full of numbers that are nothing of the kind."""
    rng = Random(seed)
    r = rng.randint
    makers: list[Callable[[], str]] = [
        lambda: (
            f"The amount of {rng.choice(['€', '$', '£'])}{r(1, 999)},{r(100, 999)}.{r(10, 99)} "
            f"was booked on {r(1, 28)}.{r(1, 12)}.{r(2000, 2030)}."
        ),
        lambda: (
            f"A transfer of {r(1, 99)} {r(100, 999)} {r(100, 999)} EUR, paid "
            f"{r(2000, 2030)}-{r(1, 12):02d}-{r(1, 28):02d}T{r(0, 23):02d}:{r(0, 59):02d}:{r(0, 59):02d}Z"
        ),
        lambda: (
            f"{r(1000000, 99999999)} customers in {r(1950, 2030)}, "
            f"{r(1, 99)},{r(100, 999)},{r(100, 999)} shares at {r(1, 400)}.{r(1000, 9999)}"
        ),
        lambda: f"Invoice {r(2000, 2030)}-{r(100000, 999999)} and invoice no. {r(10**9, 10**10 - 1)} are open.",
        lambda: (
            f"Order {r(100, 999)}-{r(1000000, 9999999)}-{r(1000000, 9999999)} shipped; order id {r(200, 999)}-{r(200, 999)}-{r(1000, 9999)}"
        ),
        lambda: f"Ref. {_draw(rng, ascii_uppercase, 3)}{r(10**7, 10**8)}, ticket #{r(10**8, 10**9 - 1)}, case 00{r(10**8, 10**9 - 1)}",
        lambda: f"Version {r(0, 20)}.{r(0, 99)}.{r(0, 9999)}.{r(0, 99999)} fails, build {r(10**9, 10**10)}",
        lambda: (
            f"Login from {r(1, 255)}.{r(0, 255)}.{r(0, 255)}.{r(0, 255)} at "
            f"{r(0, 23):02d}:{r(0, 59):02d}:{r(0, 59):02d} and 2001:db8::{r(1, 9999)}"
        ),
        lambda: (
            f"Open {r(8, 9):02d}:00-{r(12, 18)}:30, closed {r(1, 28):02d}/{r(1, 12):02d}/{r(2000, 2030)} "
            f"to {r(1, 28):02d}/{r(1, 12):02d}/{r(2000, 2030)}"
        ),
        lambda: f"I called on {r(1, 28):02d}.{r(1, 12):02d}.{r(2000, 2030)} at {r(0, 23):02d}:{r(0, 59):02d}, {r(2, 9)} times.",
        lambda: f"The IBAN {_wrong(iban_of_digits(rng))} is refused.",
        lambda: f"Card {_grouped(_wrong(card(rng)), 4, ' ')} is not valid, nor is {_wrong(card(rng))}",
        lambda: f"Routing number {_wrong(routing(rng))} does not exist",
        lambda: f"LEI {_wrong(lei(rng))} and ISIN {_wrong(isin(rng))} are unknown",
        lambda: f"SSN {rng.choice(['000', '666', '912'])}-{r(10, 99)}-{r(1000, 9999)} or 123-00-{r(1000, 9999)}",
        lambda: rng.choice(
            ["CUSTOMER SERVICE IS CLOSED", "BUSINESS RESPONSE REQUIRED", "OVERDRAFT FEES AND STANDARD CHARGES", "PLEASE TRANSFER TODAY"]
        ),
        lambda: f"Session {UUID(int=rng.getrandbits(128), version=4)} hash {rng.getrandbits(160):040x}",
        lambda: (
            f"Rate {r(0, 9)}.{r(10**14, 10**15)} %, timestamp "
            f"{r(1_500_000_000, 1_900_000_000)}, {r(1_500_000_000_000, 1_900_000_000_000)} ms"
        ),
        lambda: (
            f"Between {r(1990, 2005)} and {r(2006, 2024)} the account had {r(2, 99)} "
            f"bookings; the account was opened on {r(1, 28)} May {r(1990, 2024)}."
        ),
        lambda: f"Your account was charged {r(1, 9)},{r(100, 999)}.{r(10, 99)} and my password is not working, please reset the password.",
        lambda: (
            f"Parcel {_draw(rng, digits, 18)} weighs {r(1, 30)}.{r(100, 999)} kg; batch {r(10**11, 10**12)}, contract {r(10**7, 10**8)}"
        ),
        lambda: (
            f"Follow @{_draw(rng, ascii_lowercase, 7)} or write @ 5 pm, ratio "
            f"{r(1, 9)}:{r(1, 9)}, {r(10, 99)}-{r(10, 99)} points, page {r(100, 999)}-{r(100, 999)}"
        ),
        lambda: (
            f"ZIP {r(10000, 99999)}-{r(1000, 9999)}, room {r(100, 999)}.{r(1000, 9999)}, "
            f"SKU {_draw(rng, ascii_uppercase, 4)}{r(1000, 9999)}"
        ),
    ]
    return [Example(rng.choice(makers)()) for _ in range(count)]


def iban_of_digits(rng: Random) -> str:
    """One that ends in a digit, to be spoilt."""
    return next(value for value in iter(lambda: iban(rng), "") if value[-1] in digits)
