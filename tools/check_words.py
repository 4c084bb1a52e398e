"""Checks the words of the project, and the length of lines in Markdown. Part of `make lint`.

The documentation, comments and messages are written in plain English, with the standard terms of
the field. RULES lists the words to avoid, with replacements. In Python, only comments and strings
are checked, not identifiers.

    python tools/check_words.py [FILE ...]     without files: the whole project
"""

import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = (
    "src", "tests", "benchmarks", "examples", "docs", "tools", ".github", ".ci", "README.md",
    "CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "Makefile",
    "mkdocs.yml", "pyproject.toml",
)  # fmt: skip
ENDINGS = (".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".html", ".ipynb")
#: Longest line of prose in Markdown. Tables, code and the targets of links do not count.
LONGEST = 120
#: The characters between two words: spaces, line breaks, comment signs, adjoining strings.
GAP = r"""(?:[ \t#"']|\n(?!\s*\n)|(?<=["'\s])[fr](?=["']))+"""

UNITS = (
    "second|minute|hour|step|row|column|line|class|sample|batch|run|round|epoch|machine|node|GPU|"
    "process|rank"
)
#: The units that are nouns but not verbs.
NOUNS = "second|minute|hour|row|column|line|class|epoch|machine|node|GPU"
COUNTED = (
    "samples|images|tokens|operations|steps|rows|files|columns|lines|processes|bytes|seeds|"
    "passes|evaluations|MiB|GiB|MB|GB"
)


@dataclass(frozen=True)
class Rule:
    """Words to avoid, and their replacement. A space matches any gap, including a line break."""

    words: str
    instead: str
    unless: str = ""  # no match if this occurs in the 100 characters before

    def matches(self, text: str) -> Iterator[re.Match[str]]:
        pattern = rf"(?<![\w.-])(?:{self.words})(?![\w-])".replace(" ", GAP)
        for found in re.finditer(pattern, text, re.I):
            before = text[max(0, found.start() - 100) : found.start()]
            if not self.unless or not re.search(self.unless, before, re.I):
                yield found


RULES = (
    # Archaic or translated word for word.
    Rule("told|tells? apart", "given, named, reported; distinguished"),
    Rule("whatever|whichever", "any, regardless of, no matter which"),
    Rule("where there (?:is|are)", "if there is"),
    Rule("in place of", "instead of"),
    Rule("beside", "next to, with, in addition to"),
    Rule("h(?:old|olds|eld|olding) (?:[^\\s.;:]+ ){1,6}?against", "compare with"),
    Rule("go on|goes on|going on|went on|gone on", "continue, resume"),
    Rule("begun", "started"),
    Rule("anew", "again"),
    Rule("let go|lets go", "release"),
    Rule("at hand", "available"),
    Rule("at work", "running, active"),
    Rule("worked off|works? off", "process"),
    Rule("mend(?:s|ed|ing)?", "fix"),
    Rule("stands? for|standing for", "represent, mean, replace"),
    Rule("as if", "say directly what happens"),
    Rule("said", "name the thing again"),
    Rule("nor", "and not; or a sentence of its own", unless="neither"),
    Rule("lest|albeit|whence|wherein|whereof|therein|thereof|hereby|of old", "plain English"),
    Rule("in few (?:digits|words)|in a few digits", "fingerprint; briefly"),
    # Riddles: relative clauses and negations instead of a noun.
    Rule("none of which", "a sentence of its own"),
    Rule("(?:is|are|was) none (?:of|that)", "is not", unless="there\\s*$"),
    Rule("what is (?:not|none|no)", "the noun: non-finite values, missing files"),
    Rule("which is where|that is where|that which", "the noun"),
    Rule("know(?:s|ing)? (?:nothing|no)(?: of)?", "does not depend on, does not use"),
    Rule(
        "(?:is|are|was|were) no (?!longer|more|less|such|one|\\w+er than)\\w+",
        "is not a",
        unless="there(?: still)?\\s*$|how (?:many|large)[^.]*$|last row\\s*$",
    ),
    Rule(
        "(?:kept|counted|shown|written|drawn|measured|printed|given|missing) (?:is|are) the",
        "subject, verb, object: 'The last checkpoints are kept'",
        unless="[a-z,]\\s*$",
    ),
    # Rates and ratios.
    Rule(f"(?:{COUNTED}) an? (?:{UNITS})", "per", unless="(?:who|that|which|one|it|model)\\s*$"),
    Rule(f"(?:{NOUNS}) an? (?:{UNITS})", "per"),
    Rule(f"(?:one|each|every) (?:sample|batch|process|run) an? (?:{UNITS})", "per"),
    # Loose ends of clauses.
    Rule("so many|so few(?! [^.]*?\\bthat\\b)", "this many; the number"),
    Rule("as many as", "up to; the same number of"),
    Rule("and so(?! (?:on|may|do|does|is|are|can)\\b)", "a sentence of its own"),
    Rule("(?<=,) too(?! (?:many|much|few|small|large|long|short|late|early|far))", "also"),
    Rule("of one's own", "your own"),
    # Terms of the field.
    Rule("data sets?", "dataset"),
    Rule("judges?|judged|judging", "scorer; score, evaluate"),
    Rule("keepers?", "checkpoint manager"),
)  # fmt: skip

#: (file, words, reason): exceptions to the rules.
EXCEPTIONS: tuple[tuple[str, str, str], ...] = (
    ("tools/check_words.py", ".*", "the list itself"),
    ("tests/docs/test_check_words.py", ".*", "its tests"),
)


@dataclass(frozen=True)
class Finding:
    """A place to change."""

    file: str
    line: int
    words: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.words} -> {self.instead}"


def prose_of(name: str, text: str) -> str:
    """The prose of a file, with the same line numbers."""
    if name.endswith(".py"):
        return comments_and_strings(text)
    if name.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"https?://[^\s)>\"]+", "", text)


def comments_and_strings(source: str) -> str:
    """Python source in which a placeholder, which no rule matches, replaces all code."""
    kept = {tokenize.COMMENT, tokenize.STRING}
    for part in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"):  # from Python 3.12 on
        kept.add(getattr(tokenize, part, tokenize.STRING))
    lines = [list(re.sub(r"\S", "\0", line)) for line in source.splitlines(keepends=True)]
    originals = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in kept:
            continue
        (first, start), (last, end) = token.start, token.end
        for number in range(first, last + 1):
            line = originals[number - 1]
            begin = start if number == first else 0
            stop = end if number == last else len(line)
            kept_text = line[begin:stop]
            if token.type == tokenize.STRING and re.match("[rb]*f", token.string, re.I):
                kept_text = re.sub(r"\{[^{}]*\}", lambda code: "\0" * len(code[0]), kept_text)
            lines[number - 1][begin:stop] = kept_text
    return "".join(map("".join, lines))


def words(name: str, text: str) -> Iterator[Finding]:
    """The words of a file that a rule forbids."""
    prose = prose_of(name, text)
    for rule in RULES:
        for found in rule.matches(prose):
            shown = re.sub(r"[\s#\"']+", " ", found[0]).strip()
            if not excepted(name, shown):
                line = prose.count("\n", 0, found.start()) + 1
                yield Finding(name, line, shown, rule.instead)


def excepted(name: str, shown: str) -> bool:
    return any(name == file and re.fullmatch(what, shown, re.I) for file, what, _ in EXCEPTIONS)


def long_lines(name: str, text: str) -> Iterator[Finding]:
    """Lines of Markdown prose that are too long."""
    if not name.endswith(".md"):
        return
    fence, equation = "", False
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        equation ^= line.strip() == "$$"
        code_or_table = (
            fence or equation or line.startswith("    ") or line.lstrip()[:1] in ("|", ">")
        )
        length = len(re.sub(r"\]\([^)]*\)|https?://\S+", "", line))
        if not code_or_table and length > LONGEST:
            yield Finding(name, number, f"{length} characters", f"at most {LONGEST}")


def files_of(places: Iterable[Path]) -> Iterator[Path]:
    """The files to check."""
    for place in places:
        if place.is_dir():
            inside = (file for file in sorted(place.rglob("*")) if file.suffix in ENDINGS)
            yield from (file for file in inside if "results" not in file.parts)
        elif place.is_file():
            yield place


def main(arguments: list[str]) -> int:
    """Prints the findings, and returns 1 if there are any."""
    places = [Path(argument).resolve() for argument in arguments] or [ROOT / one for one in PLACES]
    findings: list[Finding] = []
    for file in files_of(places):
        name, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        found = [*words(name, text), *long_lines(name, text)]
        findings += sorted(found, key=lambda finding: finding.line)
    print(*findings, sep="\n", end="\n" if findings else "")
    if findings:
        print(f"{len(findings)} places to change; the words are listed in tools/check_words.py")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
