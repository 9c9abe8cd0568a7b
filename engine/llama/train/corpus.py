"""Extracts the training text from Debian packages, one language per document.

    python corpus.py PACKAGES OUT     # PACKAGES: a folder that holds the packages, unpacked with `dpkg -x`

Writes OUT/{en,fr,de}.txt: documents of one to two thousand characters, separated by a line that holds only "\\x1e".
The packages and their licences are named in models/trilingual/README.md.
"""

import gzip
import html
import re
import sys
from pathlib import Path

LANGUAGES = {"en": ("en-US", ""), "fr": ("fr-FR", "fr"), "de": ("de-DE", "de")}
DOCUMENT_CHARS = 1500
SEPARATOR = "\x1e"

# The commonest short words of each language. A paragraph that speaks another language than its folder says (text
# that nobody translated yet) would teach the model to switch in mid-document.
COMMON = {
    "en": {"the", "of", "and", "to", "is", "in", "that", "this", "for", "be", "are", "with", "by", "it", "as"},
    "fr": {"le", "la", "les", "de", "des", "et", "un", "une", "est", "dans", "que", "pour", "du", "ce", "par"},
    "de": {"der", "die", "das", "und", "ist", "ein", "eine", "den", "nicht", "von", "zu", "wird", "mit", "werden"},
}


def language_of(text: str) -> str:
    words = re.findall(r"[a-zà-ÿß]+", text.lower())
    return max(COMMON, key=lambda language: sum(w in COMMON[language] for w in words))


def handbook_paragraphs(folder: Path):
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text(encoding="utf-8", errors="replace")
        for block in re.findall(r'<(?:div class="para"|p[^>]*)>(.*?)</(?:div|p)>', text, re.S):
            clean = html.unescape(re.sub(r"<[^>]+>", "", block))
            yield re.sub(r"\s+", " ", clean).strip()


ESCAPES = [
    (re.compile(r'\\".*$', re.M), ""), (re.compile(r"\\f(\(..|\[[^]]*\]|.)"), ""), (re.compile(r"\\-"), "-"),
    (re.compile(r"\\\(aq|\\\(cq|\\\(oq|\\\[aq\]"), "'"), (re.compile(r"\\\((l|r)q|\\\[(l|r)q\]"), '"'),
    (re.compile(r"\\\(bu"), "*"), (re.compile(r"\\\(em|\\\(en"), "-"), (re.compile(r"\\[&|^:%]"), ""),
    (re.compile(r"\\(e|\(rs)"), r"\\"), (re.compile(r"\\[ ~]"), " "), (re.compile(r"\\\(co"), "(c)"),
    (re.compile(r"\\\(Fo"), "« "), (re.compile(r"\\\(Fc"), " »"), (re.compile(r"\\\(Bq"), "„"),
    (re.compile(r"\\s[+-]?\d"), ""), (re.compile(r"\\[*(\[][^\s\]]{1,4}\]?"), ""),
]
INLINE = re.compile(r"^\.(B|I|BR|BI|IB|IR|RB|RI|SM|SB)\s+(.*)$")
BREAKS = re.compile(r"^\.(PP|P|LP|TP|IP|SH|SS|RS|RE|HP|TH|TQ|br|sp|nf|fi|EX|EE|UR|UE|MT|ME|ti|in)\b")


def man_paragraphs(folder: Path):
    for page in sorted(p for n in range(1, 9) for p in (folder / f"man{n}").glob("*.gz")):
        with gzip.open(page, "rt", encoding="utf-8", errors="replace") as f:
            yield from man_page(f)


def man_page(lines):
    paragraph, code = [], False
    for line in lines:
        line = line.rstrip("\n")
        if BREAKS.match(line):
            code = line.startswith((".nf", ".EX")) or code and not line.startswith((".fi", ".EE"))
            yield clean_man(" ".join(paragraph))
            paragraph = []
            continue
        inline = INLINE.match(line)
        if inline:
            glue = "" if len(inline.group(1)) == 2 else " "
            words = re.findall(r'"([^"]*)"|(\S+)', inline.group(2))
            line = glue.join(a or b for a, b in words)
        elif line.startswith((".", "'")):
            continue
        if not code:
            paragraph.append(line)
    yield clean_man(" ".join(paragraph))


def clean_man(text: str) -> str:
    for pattern, to in ESCAPES:
        text = pattern.sub(to, text)
    return re.sub(r"\s+", " ", text).strip()


def documents(paragraphs, language):
    seen, document = set(), ""
    for p in paragraphs:
        letters = sum(c.isalpha() or c == " " for c in p)
        if len(p) < 60 or len(p) > 4000 or letters < 0.85 * len(p) or p in seen or language_of(p) != language:
            continue
        seen.add(p)
        document += p + "\n"
        if len(document) >= DOCUMENT_CHARS:
            yield document
            document = ""
    if document:
        yield document


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    packages, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for language, (book, man) in LANGUAGES.items():
        docs = list(documents(handbook_paragraphs(packages / "usr/share/doc/debian-handbook/html" / book), language))
        book_chars = sum(map(len, docs))
        docs += documents(man_paragraphs(packages / "usr/share/man" / man), language)
        chars = sum(map(len, docs))
        (out / f"{language}.txt").write_text(f"\n{SEPARATOR}\n".join(docs), encoding="utf-8")
        print(f"{language}: {len(docs)} documents, {chars} characters, {book_chars} of them from the handbook")


if __name__ == "__main__":
    main()
