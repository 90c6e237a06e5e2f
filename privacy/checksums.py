"""Is it a real number of its kind? The rules by which banks, card schemes and registries tell a number from a slip of the pen.

Every function takes the bare value: no spaces or dashes, letters in upper case. A random value passes mod 97 once in 97, Luhn and the
routing rule once in 10; issuer, country and length make it rarer.
"""

COUNTRIES = frozenset(
    """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK
    CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS
    GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV
    LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM
    PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR
    TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
    """.split()  # noqa: SIM905
)
"""ISO 3166-1, and Kosovo's XK as SWIFT has it."""

IBAN_LENGTHS = {
    word[:2]: int(word[2:])
    for word in """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27
    GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22
    MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28
    TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
    """.split()  # noqa: SIM905
}
"""Characters of an IBAN, country and check digits among them (SWIFT's IBAN registry)."""

_WITHOUT_LETTERS = frozenset(
    """
    AE AT BA BE BI CR CZ DE DJ DK EE ES FI FO GL HR HU IL IS LT LY ME MN MR NO PL PT RS SD SE SI SK SO ST TL TN VA XK
    """.split()  # noqa: SIM905
)
"""Countries whose account numbers are digits alone."""

_ISIN_PREFIXES = COUNTRIES | {"XS", "EU", "XA", "XB", "XC", "XD", "XF"}

_ISSUERS: tuple[tuple[int, int, frozenset[int]], ...] = (
    (4, 4, frozenset({13, 16, 19})),  # Visa
    (51, 55, frozenset({16})),  # Mastercard
    (2221, 2720, frozenset({16})),  # Mastercard
    (34, 34, frozenset({15})),  # American Express
    (37, 37, frozenset({15})),  # American Express
    (6011, 6011, frozenset({16, 19})),  # Discover
    (644, 659, frozenset({16, 19})),  # Discover, RuPay
    (62, 62, frozenset({16, 17, 18, 19})),  # UnionPay
    (300, 305, frozenset({14, 16})),  # Diners
    (3095, 3095, frozenset({14, 16})),  # Diners
    (36, 36, frozenset({14, 16})),  # Diners
    (38, 39, frozenset({14, 16})),  # Diners
    (3528, 3589, frozenset({16, 19})),  # JCB
    (2200, 2204, frozenset({16, 19})),  # Mir
    *((prefix, prefix, frozenset(range(12, 20))) for prefix in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)),  # Maestro
)
"""First digits from and to, and lengths."""

_CARD_LENGTHS = {
    str(prefix): lengths
    for low, high, lengths in _ISSUERS
    for prefix in range(low * 10 ** (4 - len(str(low))), (high + 1) * 10 ** (4 - len(str(high))))
}
"""The same by the first four digits."""

_CALLING_CODES = frozenset(
    """
    1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90 91 92 93 94 95 98
    211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239 240 241 242 243 244 245 246 248 249
    250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359
    370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593
    594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855 856
    870 878 880 881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998
    """.split()  # noqa: SIM905
)
"""ITU-T E.164."""


_DOUBLED = str.maketrans("0123456789", "0246813579")
"""Digits of a doubled digit, added up."""


def is_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B: every second digit from the right is doubled; the digits of all add up to a multiple of ten."""
    return (sum(map(int, digits[-1::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))) % 10 == 0


def _mod_97(text: str) -> int:
    """ISO 7064 mod 97-10, letters as 10 to 35."""
    return int("".join(str(int(character, 36)) for character in text)) % 97


def is_iban(value: str) -> bool:
    """ISO 13616: the country's length, letters only where the country has them and never more than digits, and mod 97."""
    letters = sum(character.isalpha() for character in value[4:])
    most = 0 if value[:2] in _WITHOUT_LETTERS else (len(value) - 5) // 2
    return len(value) == IBAN_LENGTHS.get(value[:2]) and letters <= most and _mod_97(value[4:] + value[:4]) == 1


def is_card(digits: str) -> bool:
    """A card scheme's first digits and lengths, and Luhn."""
    return len(digits) in _CARD_LENGTHS.get(digits[:4], ()) and is_luhn(digits)


def is_routing_number(digits: str) -> bool:
    """ABA: a Federal Reserve district, thrift, electronic or cheque prefix, and weights 3, 7, 1."""
    prefix = int(digits[:2])
    assigned = prefix <= 12 or 21 <= prefix <= 32 or 61 <= prefix <= 72 or prefix == 80
    return (
        len(digits) == 9 and assigned and int(digits) > 0 and sum(w * int(d) for w, d in zip((3, 7, 1) * 3, digits, strict=True)) % 10 == 0
    )


def is_bic(value: str) -> bool:
    """ISO 9362: four letters of the institution, an ISO country, two characters of the place, three of the branch or none."""
    return len(value) in (8, 11) and value.isalnum() and value[:6].isalpha() and value[4:6] in COUNTRIES


def is_lei(value: str) -> bool:
    """ISO 17442: 20 characters of which the last two are digits, mod 97. One of digits alone is as good as never given out."""
    return len(value) == 20 and value[18:].isdigit() and not value.isdigit() and _mod_97(value) == 1


def is_isin(value: str) -> bool:
    """ISO 6166: a country (or XS and its like), nine characters and a Luhn digit; three digits at the least."""
    shaped = len(value) == 12 and value[:2] in _ISIN_PREFIXES and value[-1].isdigit() and sum(map(str.isdigit, value)) >= 3
    return shaped and is_luhn("".join(str(int(character, 36)) for character in value))


def is_ssn(digits: str) -> bool:
    """US social security: areas 000, 666 and 900 on, group 00 and serial 0000 are never given out; two numbers were printed as samples."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    given_out = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return len(digits) == 9 and given_out and digits not in ("078051120", "219099999")


def is_international_phone(digits: str) -> bool:
    """E.164 without its plus: a calling code that is in use, 7 to 15 digits in all; after North America's 1 a number of its plan."""
    if digits.startswith("1"):
        return len(digits) == 11 and is_north_american_phone(digits[1:])
    return 7 <= len(digits) <= 15 and any(digits[:length] in _CALLING_CODES for length in (1, 2, 3))


def is_north_american_phone(digits: str) -> bool:
    """Ten digits: area and exchange begin with 2 to 9, and neither ends in 11 as services do."""
    return len(digits) == 10 and min(digits[0], digits[3]) >= "2" and "11" not in (digits[1:3], digits[4:6])
