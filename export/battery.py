"""Texts on which tokenizers come apart: what a new vocabulary is proven with.

Does: list a few hundred strings (code, digits, whitespace runs, scripts, combining marks, emoji, apostrophes, broken words) and
make more around a tokenizer's own added tokens.
Does not: tokenize.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_PLAIN = (
    "Hello world", " Hello world", "hello", "HELLO", "Hello, world!", "Hello  world", "a", " ", ".",
    "the quick brown fox", "Which of the teams with more than 12 wins scored the most points in 1998?",
    "supercalifragilisticexpialidocious", "antidisestablishmentarianism's", "iPhone12ProMax", "snake_case_name",
    "camelCaseName", "SCREAMING_CASE", "kebab-case-name", "name@example.org", "https://example.org/a/b?c=d&e=f#g",
    "C:\\Users\\name\\file.txt", "/usr/local/bin", "1st 2nd 3rd 4th", "It's", "it's they'd we'll I'm you've haven't",
    "IT'S THEY'D WE'LL I'M YOU'VE", "'s't're", "rock'n'roll", "d'accord", "o’clock", "“quoted” ‘text’",
    "«guillemets»", "„unten“", "--", "---", "—", "– en", "…", "...", "....", "!?", "?!?!", "(a)", "[b]", "{c}", "<d>",
    "a/b", "a\\b", "a|b", "#tag", "@user", "50%", "$5", "€5", "£5", "¥5", "5°", "§5", "±1", "µm", "x²", "½", "№ 5",
    "™",
)  # fmt: skip
_DIGITS = (
    "0", "1", "12", "123", "1234", "12345", "123456", "1234567", "12345678901234567890", "3.14159", "1,000,000",
    "1e-5", "0x7fff", "2024-02-29", "12:34:56", "+41 44 123 45 67", "v1.2.3", "1/2", "a1b2c3", "007", "1 2 3",
    "１２３", "٣٤٥", "१२३", "Ⅷ", "x10y20", "10 000,5", "-17", "1.", ".5", "192.168.0.1", "99.9%", "$1,234.56", "3x3",
    "2^10", "H2O", "B2B",
)  # fmt: skip
_SPACES = (
    "  ", "   ", "    ", "        ", " " * 16, " " * 31, " " * 32, " " * 33, " " * 35, " " * 64, " " * 129, "\t",
    "\t\t", "\t\t\t", "\t" * 40, "\n", "\n\n", "\n\n\n", "\n" * 5, "\n" * 40, "\r\n", "\r\n\r\n", "\r", " \n", "\n ",
    " \n ", " \n \n ", "\t\n", "\n\t", "a  b", "a   b", "a\tb", "a\nb", "a\n\nb", "a \nb", "a\n b", "a\r\nb", "  a",
    "a  ", "   a   ", "\n\na", "a\n\n", "a" + " " * 40 + "b", "a" + "\n" * 10 + "b", "\u00a0", "a\u00a0b", "\u2003",
    "a\u2003b", "\u3000", "a\u3000b", "\u200b", "a\u200bb", "\u2028", "\ufeff", "a\x0bb", "a\x0cb", "\x1c", "\x85",
)  # fmt: skip
_CODE = (
    "def f(x: int) -> int:\n    return x + 1\n", "if (x > 0) {\n\t\treturn x;\n\t}\n",
    "for i in range(10):\n  print(i)",
    "SELECT name, COUNT(*) FROM singer WHERE age >= 21 AND country = 'France' GROUP BY name;",
    "SELECT * FROM t WHERE a!='b' -- c", '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}',
    "[1,2,3]", '{"a":[{"b":null},true]}', "x = y == z != w", "a+=1;b-=2;c*=3", "&&||!", "::<>()->=>",
    "#include <stdio.h>", "<div class=\"a\">b</div>", "// comment\n/* block */", "lambda x: x**2", "f'{x!r:>10}'",
    "r\"\\d+\\.\\w*\"", "${VAR:-default}", "$(ls -la | grep x)", "import os, sys", "@decorator", "a[1:-1]",
    "std::vector<int>{}", "\\begin{equation} \\frac{1}{2} \\end{equation}", "| a | b |\n|---|---|\n",
    "```python\nx\n```", "- item\n  - nested\n", "key: value\nlist:\n  - 1\n", "0b1010 0o17 0xFF",
    "~!@#$%^&*()_+`-={}[]|;':\"<>?,./",
)  # fmt: skip
_SCRIPTS = (
    "Zürich", "Übermäßig große Straßen", "déjà vu à l'école", "naïve café", "Ærøskøbing", "Łódź", "İstanbul", "ıIİi",
    "Dvořák", "ñandú", "Привет, мир!", "Сколько строк в таблице?", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم",
    "سلام دنیا", "नमस्ते दुनिया", "বাংলা ভাষা", "தமிழ் மொழி", "ไทยภาษา", "ພາສາລາວ", "မြန်မာ", "ខ្មែរ",
    "한국어 문장입니다", "한국어", "日本語のテキスト", "カタカナ", "ひらがな", "你好，世界。", "你好世界",
    "今天天气很好", "數據庫", "データベース 12 行", "中文English混合123", "Tiếng Việt", "ქართული", "Հայերեն", "አማርኛ",
    "𝕳𝖊𝖑𝖑𝖔", "ﬁne ﬂow", "Ｆｕｌｌｗｉｄｔｈ", "ß ẞ", "ǆ ǅ Ǆ",
)  # fmt: skip
_MARKS = (
    "e\u0301", "cafe\u0301", "n\u0303", "A\u030a", "o\u0308\u0304", "\u0301", "a\u0300\u0301\u0302", "q\u0323\u0307",
    "q\u0307\u0323", "ﬀ\u0301", "\u1e9b\u0323", "각", "\u1100\u1161\u11a8", "ế", "e\u0302\u0301", "नि", "क्षि", "กำ",
    "\u212b", "\u2126", "Z\u0351\u0310a",
)  # fmt: skip
_PICTURES = (
    "😀", "😀😀", "👍🏽", "👨‍👩‍👧", "🇨🇭", "❤️", "☺", "a😀b", "😀 😀", "🏳️‍🌈", "→ ← ↑", "∑∫√≤≥", "α+β=γ", "█▓▒░",
    "┌─┐", "♠♥♦♣", "\U0001f9ff", "\U0010ffff", "\ue000", "\x00", "\x01\x02", "\x7f", "\ufffd", "a\u0000b",
)  # fmt: skip


def battery(added: Sequence[str] = ()) -> list[str]:
    """At least 200 different texts, and those around up to 40 of the `added` tokens. The empty text is not among them."""
    texts = [*_PLAIN, *_DIGITS, *_SPACES, *_CODE, *_SCRIPTS, *_MARKS, *_PICTURES]
    mixed = [_PLAIN[10], _CODE[0], _SCRIPTS[9], _SPACES[13], _PICTURES[2], _DIGITS[13], _MARKS[1]]
    texts += [left + right for left, right in itertools.permutations(mixed, 2)]
    texts.append("".join(texts[:80]))
    texts.append(" ".join(texts[:200]))
    tokens = list(added) if len(added) <= 40 else [*added[:20], *added[-20:]]
    for token in tokens:
        texts += [token, f"a{token}b", f"a {token} b", f" {token}", f"{token} ", f"{token}\n\nb", f"{token}{token}"]
        texts += [f"\n{token}", f"{token}é e\u0301"]
    texts += [f"{left}{right} c" for left, right in itertools.pairwise(tokens)]
    texts += [token[:-1] for token in tokens if len(token) > 2]
    return list(dict.fromkeys(texts))
