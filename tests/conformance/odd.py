"""Unusual values for mutations. Two validators or parsers may treat such a value differently."""
# ruff: noqa: SIM905 - as list literals, one value on each line, these would be hundreds of lines

NUMBERS = """
    0 -0 -0.0 1 -1 0.5 -0.5 1.0 587.0 5.87e2 1e2 1E+2 100e-2 5e-324 1e-400 1e15 1e16 1e21 1e22 1e300
    2147483647 2147483648 4294967295 4294967296 -2147483649 4503599627370496.5
    9007199254740990 9007199254740991 9007199254740992 9007199254740993 9007199254740991.0 9007199254740992.0
    9007199254740990.5 9007199254740991.4 9007199254740991.5 -9007199254740991
    9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809
    18446744073709551615 18446744073709551616 -18446744073709551616 10000000000000000000000000000000000000000
    1.7976931348623157e308 0.1 0.30000000000000004 0.99999999999999999 1.0000000000000001 1e-7 1e-20
""".split()
"""JSON texts of numbers, because the same number can be written in several ways."""

STRINGS = [
    *"0 1 -1 null true x killmail corporation battle a-b a--b -a http://a https:// https://killboard.example/".split(),
    *"2024-10-22 2024-10-22T10:30:00Z 2024-10-22T10:30:00.000+02:00 2024-02-29T23:59:59Z 2023-02-29T00:00:00Z".split(),
    *"2016-12-31T23:59:60Z 0000-01-01T00:00:00Z".split(),
    *("", " ", "é", "🚀", "\0", "\u2028", "\ufeff", "e\u0301"),
    *(character * length for character in "a🚀" for length in (100, 101, 200, 201, 300, 301)),
    *("👩‍🚀" * 67, "e\u0301" * 100),
]

NAMES = ["", *"__proto__ constructor toString hasOwnProperty length 0 a/b ~ ~0 $ref é 🚀".split()]

CHARACTERS: list[str] = [
    *"0123456789TZtz:-+. ,/_aAfF\n\t\0é🚀",
    "\u0662",
    "\uff12",
    "\u2212",
    "\u200b",
    "\u017f",
    "\u212a",
]
"""Unusual characters. Some of them look like ASCII digits, letters or a minus sign, but are not ASCII."""

DATE_TIME_PARTS = [
    (0, 4, "0000 0001 1899 1900 2000 2023 2024 2100 9999".split()),
    (5, 7, "00 01 02 02 02 04 06 09 11 12 13".split()),
    (8, 10, "00 01 28 29 29 30 31 32".split()),
    (11, 13, "00 12 19 20 21 22 23 24 25 26".split()),
    (14, 16, "00 29 30 59 60 89 99".split()),
    (17, 19, "00 58 59 60 61".split()),
]
"""For each part of `2024-10-22T10:30:00Z`: where the part starts and ends, and what can replace the part."""

FRACTIONS = ["", *". .0 .5 .000 .999999999 .9999999999 .12345678901234567890 ,5 .5e1 .-5 .\u0662".split()]

ZONES = [
    *("", " Z", "Z ", "Z\n"),
    *"Z z ZZ +00:00 -00:00 +02:00 -09:30 +23:59 -23:59 +24:00 -24:00 +23:60 +14:00 +15:00 +99:99".split(),
    *"+2:00 +02 +0200 +02:0 +02:00:00 \u221202:00".split(),
]
