"""ADD of git repositories, by the git command line: a shallow checkout that is walked as a local directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pylayers.build.session import BuildSession
from pylayers.build.source.local import LocalSource, LocalTree, clean_source, resolve_inside
from pylayers.errors import IntegrityError, InvalidInput, NotFound, PylayersError, Unsupported
from pylayers.record import record

SCP = re.compile(r"[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:(?!//)\S")
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
QUERY = frozenset(("ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules"))
GIT_TIMEOUT_S = 3600
MISSING = ("couldn't find remote ref", "not our ref", "not found", "does not exist", "did not match", "not exported")


class GitFailed(PylayersError):
    """The git command failed."""

    exit_code = 9


@record
class GitAddress:
    """A repository, and what of it: `ref` is empty for the main branch."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    submodules: bool = True


def parse_git(source: str) -> GitAddress | None:
    """Read a git address; None for what is none. Raises InvalidInput for a query that says nothing known."""
    whole, _, fragment = source.partition("#")
    base, _, query = whole.partition("?")
    if "://" in base:
        scheme = base.partition("://")[0].lower()
        if scheme not in ("git", "ssh", "http", "https"):
            return None
        if scheme.startswith("http") and not urlsplit(base).path.endswith(".git"):
            return None
    elif not SCP.match(base):
        return None
    ref, _, subdir = fragment.partition(":")
    address = GitAddress(base, ref, subdir)
    return read_query(address, query, source) if query else address


def read_query(address: GitAddress, query: str, source: str) -> GitAddress:
    """Take over what a query says."""
    if address.ref or address.subdir:
        raise InvalidInput(f"{source}: give the ref in the query or behind #, not in both")
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in QUERY:
            raise InvalidInput(f"{source}: unexpected query {name!r}", hint=f"known: {', '.join(sorted(QUERY))}")
        if name in given:
            raise InvalidInput(f"{source}: {name} is given twice")
        given[name] = value
    refs = [name for name in ("ref", "tag", "branch") if given.get(name)]
    if len(refs) > 1:
        raise InvalidInput(f"{source}: {' and '.join(refs)} conflict")
    prefix = {"tag": "refs/tags/", "branch": "refs/heads/"}.get(refs[0], "") if refs else ""
    ref = prefix + given[refs[0]].removeprefix(prefix) if refs else ""
    return GitAddress(
        address.remote, ref, given.get("subdir", ""), given.get("checksum") or given.get("commit", ""),
        is_true(given, "keep-git-dir", False, source), is_true(given, "submodules", True, source),
    )  # fmt: skip


def is_true(given: dict[str, str], name: str, otherwise: bool, source: str) -> bool:
    """Read a yes or no of a query."""
    value = given.get(name)
    if value is None:
        return otherwise
    if value.lower() in ("", "1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidInput(f"{source}: {name}={value} is neither true nor false")


def open_git(session: BuildSession, address: GitAddress, checkouts: list[Path]) -> LocalTree:
    """Check a repository out and walk it; the folder is added to `checkouts`, the caller's to remove.

    Raises NotFound, IntegrityError for another commit than the checksum's, GitFailed, Unsupported without git.
    """
    if shutil.which("git") is None:
        raise Unsupported(f"{address.remote} needs the git command", hint="install git (apt-get install git)")
    if address.ref.startswith("-") or address.remote.startswith("-"):
        raise InvalidInput(f"{address.remote}#{address.ref}: a ref does not begin with a dash")
    session.settle()
    folder = Path(tempfile.mkdtemp(prefix="git-", dir=session.store.root / "tmp"))
    checkouts.append(folder)
    tree = folder / "tree"
    commit = check_out(address, tree)
    if address.checksum and not commit.startswith(address.checksum):
        raise IntegrityError(f"{address.remote}: expected checksum to match {address.checksum}, got {commit}")
    time_s = int(run_git(tree, "show", "-s", "--format=%ct", "HEAD").split()[0])
    if address.keep_git_dir:
        settle_git_dir(tree)
    else:
        remove_git_dirs(tree)
    subdir = clean_source(address.subdir)
    if subdir and not (tree / resolve_inside(tree, subdir)).is_dir():
        raise NotFound(f"{address.remote}: {address.subdir!r} is not a directory of {address.ref or 'the repository'}")
    set_times(tree, time_s)
    return LocalSource(tree).open(subdir)


def check_out(address: GitAddress, tree: Path) -> str:
    """Fetch one commit without its history, check it out with its submodules, and return its name."""
    tree.mkdir(mode=0o755)
    run_git(tree, "init", "-q", "--template=", "--initial-branch=master")
    run_git(tree, "remote", "add", "origin", address.remote)
    wanted = address.ref or "HEAD"
    options = ["-q", "--depth=1", "--no-tags", "--force"]
    try:
        run_git(tree, "fetch", *options, "origin", wanted)
    except NotFound:
        if not re.fullmatch("[0-9a-f]{7,64}", wanted):
            raise
        # A server that gives no commits by name, or a shortened name: everything is fetched.
        run_git(tree, "fetch", "-q", "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        run_git(tree, "checkout", "-q", "--detach", wanted)
    else:
        run_git(tree, "checkout", "-q", "--detach", "FETCH_HEAD")
    if address.submodules and (tree / ".gitmodules").is_file():
        run_git(tree, "submodule", "update", "-q", "--init", "--recursive", "--depth=1")
    return run_git(tree, "rev-parse", "HEAD").strip()


def run_git(tree: Path, *arguments: str) -> str:
    """Run git in a checkout, without the user's configuration and without questions. Raises NotFound, GitFailed."""
    environment = {
        name: value for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in ("GIT_SSL_CAINFO", "GIT_SSH", "GIT_SSH_COMMAND")
    }  # fmt: skip
    environment |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_DIR": str(tree / ".git"),
        "GIT_WORK_TREE": str(tree),
        "LC_ALL": "C",
    }
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    if arguments[0] == "submodule":  # runs git in other repositories: finds this one by where it is
        del environment["GIT_DIR"], environment["GIT_WORK_TREE"]
    settings = ("-c", "transfer.unpackLimit=1000000000", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0")
    done = subprocess.run(
        ["/bin/sh", "-c", 'umask 022; exec git "$@"', "git", *settings, *arguments],
        cwd=tree, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", timeout=GIT_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return done.stdout
    said = " / ".join(line for line in done.stderr.splitlines() if line.strip())[-600:]
    kind = NotFound if any(words in said for words in MISSING) else GitFailed
    raise kind(f"git {arguments[0]} {arguments[-1]}: {said or f'status {done.returncode}'}")


def settle_git_dir(tree: Path) -> None:
    """Leave nothing in a kept .git that another day's checkout of the same commit would not have."""
    for name in ("FETCH_HEAD", "ORIG_HEAD", "index"):
        (tree / ".git" / name).unlink(missing_ok=True)
    shutil.rmtree(tree / ".git" / "logs", ignore_errors=True)
    run_git(tree, "read-tree", "HEAD")


def remove_git_dirs(tree: Path) -> None:
    """Remove git's own files, the submodules' too."""
    for directory, folders, files in os.walk(tree):
        if ".git" in folders:
            folders.remove(".git")
            shutil.rmtree(os.path.join(directory, ".git"))
        if ".git" in files:
            os.unlink(os.path.join(directory, ".git"))


def set_times(tree: Path, time_s: int) -> None:
    """Give everything the commit's time: a checkout's own differs from day to day."""
    for directory, _folders, files in os.walk(tree, topdown=False):
        for name in (*files, *_folders):
            os.utime(os.path.join(directory, name), (time_s, time_s), follow_symlinks=False)
    os.utime(tree, (time_s, time_s))
