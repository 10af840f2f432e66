"""Every Dockerfile instruction as a record, holding its text as written.

`expand(environment)` returns the same instruction with the fields expanded that docker expands, and only those:
RUN, CMD, ENTRYPOINT, SHELL, HEALTHCHECK, MAINTAINER and ONBUILD commands come back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from pylayers.dockerfile.expand import Lookup, expand_word, expand_words
from pylayers.dockerfile.lex import Directive, Heredoc
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self

Word = Callable[[str], str]


@record(kw_only=True)
class Instruction:
    """What all instructions share.

    `original` is the logical line as shown in progress, `keyword` the name as written, `escape` the file's escape
    character, `comments` the comment lines right above.
    """

    name: ClassVar[str] = ""
    span: SourceSpan
    original: str
    keyword: str = ""
    escape: str = "\\"
    comments: tuple[str, ...] = ()

    @property
    def holds_heredocs(self) -> bool:
        """Tell whether there is text beside the logical line."""
        return False

    def expand(self, environment: Lookup, *, unmatched: list[str] | None = None) -> Self:
        """Return the instruction with its variables replaced; names without a value are added to `unmatched`.

        Raises InvalidInput, with the instruction's span, for a malformed word.
        """
        text = self.original
        if not ("$" in text or '"' in text or "'" in text or self.escape in text or self.holds_heredocs):
            return self  # nothing in it could change

        def expand_one(word: str) -> str:
            return expand_word(word, environment, self.escape, unmatched=unmatched)

        try:
            return self._expand(expand_one, environment, unmatched)
        except InvalidInput as error:
            raise InvalidInput(error.message, hint=error.hint, span=self.span) from None

    def expand_one(self, word: str, environment: Lookup, *, unmatched: list[str] | None = None) -> str:
        """Return one word of the instruction with its variables replaced. Raises InvalidInput with the span."""
        try:
            return expand_word(word, environment, self.escape, unmatched=unmatched)
        except InvalidInput as error:
            raise InvalidInput(error.message, hint=error.hint, span=self.span) from None

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return self


@record(kw_only=True)
class From(Instruction):
    """FROM; `alias` is in lower case, `alias_text` and `as_keyword` as written."""

    name: ClassVar[str] = "FROM"
    image: str
    platform: str | None = None
    alias: str | None = None
    alias_text: str = ""
    as_keyword: str = ""

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        platform = None if self.platform is None else word(self.platform)
        return replace(self, image=word(self.image), platform=platform)


@record(kw_only=True)
class Arg(Instruction):
    """ARG; a default of None means that none was given."""

    name: ClassVar[str] = "ARG"
    pairs: tuple[tuple[str, str | None], ...]

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, pairs=tuple((word(k), None if v is None else word(v)) for k, v in self.pairs))


@record(kw_only=True)
class Env(Instruction):
    """ENV; all values of one instruction see the environment before it. `legacy`: `ENV name value`."""

    name: ClassVar[str] = "ENV"
    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, pairs=tuple((word(k), word(v)) for k, v in self.pairs))


@record(kw_only=True)
class Label(Instruction):
    """LABEL."""

    name: ClassVar[str] = "LABEL"
    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, pairs=tuple((word(k), word(v)) for k, v in self.pairs))


@record(kw_only=True)
class Run(Instruction):
    """RUN; in shell form `command` is one string (or none), `mounts` are the values of --mount as written."""

    name: ClassVar[str] = "RUN"
    command: tuple[str, ...]
    shell: bool
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[str, ...] = ()
    network: str | None = None
    security: str | None = None
    devices: tuple[str, ...] = ()


@record(kw_only=True)
class _Transfer(Instruction):
    """What COPY and ADD share; `heredocs` are the sources that are here-documents, named as the files they make.

    The patterns of --exclude stay as written.
    """

    sources: tuple[str, ...]
    destination: str
    chown: str | None = None
    chmod: str | None = None
    link: bool = False
    exclude: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()

    @property
    def holds_heredocs(self) -> bool:
        """Tell whether there is text beside the logical line."""
        return bool(self.heredocs)

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        def expand_heredoc(heredoc: Heredoc) -> Heredoc:
            if not heredoc.expand:
                return heredoc
            # Always the backslash here, and quotes are text: this is file content.
            content = expand_word(heredoc.text, environment, unmatched=unmatched, quotes=False)
            return replace(heredoc, content=content, expand=False, chomp=False)

        return replace(
            self,
            sources=tuple(word(source) for source in self.sources),
            destination=word(self.destination),
            chown=None if self.chown is None else word(self.chown),
            chmod=None if self.chmod is None else word(self.chmod),
            heredocs=tuple(expand_heredoc(heredoc) for heredoc in self.heredocs),
        )


@record(kw_only=True)
class Copy(_Transfer):
    """COPY; `from_stage` (a stage, an index, an image or a named context) is never expanded."""

    name: ClassVar[str] = "COPY"
    from_stage: str | None = None
    parents: bool = False


@record(kw_only=True)
class Add(_Transfer):
    """ADD; `unpack` is None when the flag was not given (local archives are unpacked, downloads are not)."""

    name: ClassVar[str] = "ADD"
    checksum: str | None = None
    keep_git_dir: bool = False
    unpack: bool | None = None

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        expanded = super()._expand(word, environment, unmatched)
        return replace(expanded, checksum=None if self.checksum is None else word(self.checksum))


@record(kw_only=True)
class Workdir(Instruction):
    """WORKDIR."""

    name: ClassVar[str] = "WORKDIR"
    path: str

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, path=word(self.path))


@record(kw_only=True)
class User(Instruction):
    """USER."""

    name: ClassVar[str] = "USER"
    user: str

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, user=word(self.user))


@record(kw_only=True)
class Cmd(Instruction):
    """CMD; in shell form `command` is one string."""

    name: ClassVar[str] = "CMD"
    command: tuple[str, ...]
    shell: bool


@record(kw_only=True)
class Entrypoint(Instruction):
    """ENTRYPOINT; an empty command resets it."""

    name: ClassVar[str] = "ENTRYPOINT"
    command: tuple[str, ...]
    shell: bool


@record(kw_only=True)
class Expose(Instruction):
    """EXPOSE; one variable may hold several ports."""

    name: ClassVar[str] = "EXPOSE"
    ports: tuple[str, ...]

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        ports: list[str] = []
        for port in self.ports:
            ports += expand_words(port, environment, self.escape)  # BuildKit says nothing of unset names here
        return replace(self, ports=tuple(ports))


@record(kw_only=True)
class Volume(Instruction):
    """VOLUME."""

    name: ClassVar[str] = "VOLUME"
    paths: tuple[str, ...]

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, paths=tuple(word(path) for path in self.paths))


@record(kw_only=True)
class Shell(Instruction):
    """SHELL."""

    name: ClassVar[str] = "SHELL"
    command: tuple[str, ...]


@record(kw_only=True)
class StopSignal(Instruction):
    """STOPSIGNAL."""

    name: ClassVar[str] = "STOPSIGNAL"
    signal: str

    def _expand(self, word: Word, environment: Lookup, unmatched: list[str] | None) -> Self:
        return replace(self, signal=word(self.signal))


@record(kw_only=True)
class Healthcheck(Instruction):
    """HEALTHCHECK; `test` begins with NONE, CMD or CMD-SHELL as in an image config, and 0 means not given."""

    name: ClassVar[str] = "HEALTHCHECK"
    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@record(kw_only=True)
class Onbuild(Instruction):
    """ONBUILD; `instruction` is the trigger's text, here-documents included, for parse_instruction."""

    name: ClassVar[str] = "ONBUILD"
    instruction: str


@record(kw_only=True)
class Maintainer(Instruction):
    """MAINTAINER (deprecated)."""

    name: ClassVar[str] = "MAINTAINER"
    maintainer: str


@record
class Warning_:
    """A lint finding: docker's rule name, the message, and where."""

    rule: str
    message: str
    span: SourceSpan


@record
class Stage:
    """One build stage; `name` is its alias in lower case, or None."""

    index: int
    name: str | None
    base: From
    instructions: tuple[Instruction, ...]
    span: SourceSpan


@record
class Dockerfile:
    """A parsed file; `warnings` are those that only the text shows, lint.check gives all."""

    file: str
    directives: tuple[Directive, ...]
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    warnings: tuple[Warning_, ...] = ()

    def directive(self, name: str) -> str | None:
        """Return the value of a parser directive, or None."""
        return next((d.value for d in self.directives if d.name == name), None)

    @cached_property
    def _stage_indexes(self) -> dict[str, list[int]]:
        indexes: dict[str, list[int]] = {}
        for stage in self.stages:
            if stage.name is not None:
                indexes.setdefault(stage.name, []).append(stage.index)
        return indexes

    def find_stage(self, name: str, before: int | None = None) -> Stage | None:
        """Return the last stage of that name (any case) before stage `before`, as FROM and COPY --from look it up."""
        indexes = self._stage_indexes.get(name.lower())
        if not indexes:
            return None
        from bisect import bisect_left  # most stages are begun from an image

        position = len(indexes) if before is None else bisect_left(indexes, before)
        return self.stages[indexes[position - 1]] if position else None
