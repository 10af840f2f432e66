"""A Dockerfile's text in logical lines: directives, continuations, comments and here-documents, with their places.

The rules are BuildKit's. One pass; every line is looked at a bounded number of times.
"""

from __future__ import annotations

import re

from pylayers.dockerfile import expand
from pylayers.dockerfile.arguments import Arguments, split_line
from pylayers.dockerfile.text import SPACES, replace_surrogates, show
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import record

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 65535  # BuildKit's
MAX_INSTRUCTIONS = 100_000
MAX_COMMENTS = 50  # kept per instruction: those nearest to it
DIRECTIVES = ("syntax", "escape", "check")

_DIRECTIVE = re.compile(r"#[\t\n\f\r ]*([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*")
_HEREDOC = re.compile(r"([0-9]*)<<(-?)([^<]*)\Z")
_LEADING_TABS = r"(?m)^\t+"
_HEREDOC_INSTRUCTIONS = frozenset({"add", "copy", "run"})
_SPAN_TEXT_LENGTH = 2000


@record
class Heredoc:
    """A here-document: `content` as written with its line ends, `line` where it begins.

    `expand` is false when its name was quoted, `chomp` true for `<<-` (leading tabs go away in `text`).
    """

    name: str
    content: str = ""
    expand: bool = True
    chomp: bool = False
    descriptor: int = 0
    line: int = 0

    @property
    def text(self) -> str:
        """Return the content as its reader sees it."""
        return re.sub(_LEADING_TABS, "", self.content) if self.chomp else self.content


@record
class Directive:
    """A parser directive such as `# escape=...`; the name is in lower case."""

    name: str
    value: str
    line: int


@record
class Statement:
    """One logical line: joined text, its parts, its here-documents and the comments right above it."""

    text: str
    span: SourceSpan
    arguments: Arguments
    heredocs: tuple[Heredoc, ...] = ()
    comments: tuple[str, ...] = ()
    empty_continuation_line: int = 0  # where the statement ends, if a blank line stands within it


@record
class Source:
    """A whole file: directives first, then its statements."""

    file: str
    directives: tuple[Directive, ...]
    statements: tuple[Statement, ...]

    @property
    def escape(self) -> str:
        """Return the escape character."""
        return next((d.value for d in self.directives if d.name == "escape"), "\\")


def read(content: bytes | str, file: str = "Dockerfile") -> Source:
    """Split a file into statements; raise InvalidInput with the span of the first malformed one."""
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInput(f"{file} is larger than {MAX_FILE_BYTES} bytes")
    # Bytes that are not UTF-8 pass through RUN and here-documents unchanged, as surrogate escapes.
    text = content.decode("utf-8", "surrogateescape") if isinstance(content, bytes) else content
    reader = _Reader(text.removeprefix("\ufeff"), file)
    while reader.position < len(reader.lines):
        reader.read_statement()
    if not reader.statements:
        raise InvalidInput("file with no instructions", span=SourceSpan(file, max(1, reader.position)))
    return Source(file, tuple(reader.directives.values()), tuple(reader.statements))


def split_physical(text: str) -> list[str]:
    """Split at newlines, keeping them; other line separators are ordinary characters."""
    lines = text.split("\n")
    last = lines.pop()
    lines = [line + "\n" for line in lines]
    return [*lines, last] if last else lines


class _Reader:
    """The state of one pass; `position` counts the physical lines taken."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = split_physical(text)
        self.position = 0
        self.directives: dict[str, Directive] = {}
        self.directives_done = False
        self.escape = "\\"
        self.statements: list[Statement] = []
        self.comments: list[str] = []

    def span(self, start: int) -> SourceSpan:
        """Return the place from line `start` to the last line taken, with the source of its first line."""
        text = self.lines[start - 1].strip(SPACES)[:_SPAN_TEXT_LENGTH] if start <= len(self.lines) else ""
        return SourceSpan(self.file, start, max(start, self.position), replace_surrogates(text))

    def _take(self) -> str:
        line = self.lines[self.position]
        self.position += 1
        if len(line) > MAX_LINE_BYTES or (
            len(line) * 4 > MAX_LINE_BYTES and len(line.encode("utf-8", "surrogatepass")) > MAX_LINE_BYTES
        ):
            raise InvalidInput(
                f"dockerfile line greater than max allowed size of {MAX_LINE_BYTES}", span=self.span(self.position)
            )
        return line

    def _read_directive(self, line: str) -> bool:
        if self.directives_done:
            return False
        match = _DIRECTIVE.match(line)
        name = match.group(1).lower() if match else ""
        value = line[match.end() :].strip("\t\n\f\r ") if match else ""
        if name not in DIRECTIVES or not value:
            self.directives_done = True
            return False
        if name in self.directives:
            first = self.directives[name].line
            raise InvalidInput(
                f"only one {name} parser directive can be used", span=SourceSpan(self.file, first, first, line.strip()),
                hint=f"take out the one in line {self.position}",
            )  # fmt: skip
        if name == "escape":
            if value not in {"\\", "`"}:
                message = f"invalid escape token '{show(value)}' does not match ` or \\"
                raise InvalidInput(message, span=self.span(self.position))
            self.escape = value
        self.directives[name] = Directive(name, value, self.position)
        return True

    def _trim_continuation(self, line: str) -> tuple[str, bool]:
        """Return the line without its continuation character, and whether the instruction ends here.

        A doubled escape is not a continuation, unless it stands alone on the line with blanks.
        """
        trimmed = line.rstrip(" \t")
        if not trimmed.endswith(self.escape) or trimmed.endswith(self.escape * 2):
            return line, True
        return trimmed[:-1], False

    def read_statement(self) -> None:
        """Take one logical line and its here-documents; blank lines and comments make none."""
        raw = self._take()
        start = self.position
        line = raw.rstrip("\r\n").lstrip(SPACES)
        is_comment = line.startswith("#")
        if self._read_directive(line):
            self.comments.clear()
            return
        if is_comment:
            comment = line[1:].strip(SPACES)
            self.comments = [*self.comments, comment][-MAX_COMMENTS:] if comment else []
            return
        line, ended = self._trim_continuation(line)
        if ended and not line:
            return  # comments before it still count for the next instruction, as in BuildKit
        pieces = [line]
        empty_line = 0
        while not ended and self.position < len(self.lines):
            following = self._take().rstrip("\r\n")
            bare = following.lstrip(SPACES)
            if bare.startswith("#"):
                continue
            if not bare:
                empty_line = -1
                continue
            following, ended = self._trim_continuation(following)
            pieces.append(following)
        text = "".join(pieces)
        empty_line = self.position if empty_line else 0
        try:
            arguments = split_line(text, self.escape)
            heredocs = find_heredocs(text) if "<<" in text and _may_hold_heredoc(arguments) else []
        except InvalidInput as error:
            raise InvalidInput(error.message, span=self.span(start)) from None
        read = tuple(self._read_heredoc(heredoc, start) for heredoc in heredocs)
        if len(self.statements) >= MAX_INSTRUCTIONS:
            raise InvalidInput(f"more than {MAX_INSTRUCTIONS} instructions", span=self.span(start))
        comments, self.comments = tuple(self.comments), []
        self.statements.append(Statement(text, self.span(start), arguments, read, comments, empty_line))

    def _read_heredoc(self, heredoc: Heredoc, start: int) -> Heredoc:
        first = self.position
        while self.position < len(self.lines):
            line = self._take().rstrip("\r\n")
            if (line.lstrip("\t") if heredoc.chomp else line) == heredoc.name:
                content = "".join(self.lines[first : self.position - 1])
                return Heredoc(heredoc.name, content, heredoc.expand, heredoc.chomp, heredoc.descriptor, first + 1)
        raise InvalidInput(
            "unterminated heredoc",
            span=self.span(start),
            hint=f"end it with a line that holds only {show(heredoc.name)}",
        )


def _may_hold_heredoc(arguments: Arguments) -> bool:
    inner = arguments.nested if arguments.keyword.lower() == "onbuild" and arguments.nested else arguments
    return inner.keyword.lower() in _HEREDOC_INSTRUCTIONS and not inner.is_json


def find_heredocs(line: str) -> list[Heredoc]:
    """Return the here-documents that a logical line announces, without their content."""
    mode = expand.Mode(raw_quotes=True, raw_escapes=True, keep_unset=True)
    try:
        words = expand.process(line, {}, mode).words
    except InvalidInput:
        return []  # a line that the shell would read differently announces none
    return [heredoc for word in words if (heredoc := parse_heredoc(word)) is not None]


def parse_heredoc(word: str) -> Heredoc | None:
    """Read a word such as `<<EOF`, `<<-EOF`, `3<<"EOF"`; None when it is no here-document."""
    match = _HEREDOC.match(word)
    if match is None or not match.group(3):
        return None
    plain = expand.process(match.group(3), {}, expand.Mode(keep_unset=True)).words
    if len(plain) != 1:
        return None
    raw = expand.process(match.group(3), {}, expand.Mode(keep_unset=True, raw_quotes=True)).words
    quoted = any(raw[0].count(mark) != plain[0].count(mark) for mark in "'\"") if raw else False
    descriptor = int(match.group(1)[:9] or "0")
    return Heredoc(plain[0], expand=not quoted, chomp=bool(match.group(2)), descriptor=descriptor)
