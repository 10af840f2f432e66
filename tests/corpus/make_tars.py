"""Make the tars in good/ and should_fail/ and the list of the failures' offsets; run it only to add to them.

good/tar_gnu_*.tar come from GNU tar (sparse files, long names), the others from Python's tarfile.
GNU tar writes its process id into the names of its pax sparse headers, so those two differ on every run.
should_fail/tar_failures.json says for each bad tar at which byte, and with which words, scanning stops.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
END = bytes(1024)


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def edit(entry: bytes, at: int, value: bytes) -> bytes:
    """Change a header and set its checksum right again."""
    changed = bytearray(entry)
    changed[at : at + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def pax(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return member("pax", kind, body)


def sparse(text: bytes, real: int, data: bytes) -> bytes:
    """Make a file in sparse format 0.1."""
    records = b""
    for key, value in (
        (b"size", b"%d" % real), (b"numblocks", b"%d" % ((text.count(b",") + 1) // 2)), (b"map", text),
    ):  # fmt: skip
        rest = b" GNU.sparse." + key + b"=" + value + b"\n"
        records += b"%d" % (len(rest) + 2) + rest
    return pax(records) + member("s", data=data)


def failures() -> dict[str, tuple[bytes, int, str]]:
    """Give name → (tar, offset, words of the message)."""
    a = member("a", data=b"x")  # 1024 bytes
    bad = bytearray(member("b"))
    bad[0] ^= 1
    old_sparse = edit(member("s"), 156, b"S")
    return {
        "checksum": (a + bytes(bad) + END, 1024, "checksum"),
        "header_cut": (a + member("b")[:300], 1024, "512 bytes"),
        "data_cut": (a + member("b", data=bytes(600))[:900], 1024 + 124, "cut off"),
        "padding_cut": (a + member("b", data=bytes(600))[:1200], 1024 + 512 + 600, "padded"),
        "size_huge": (edit(member("b"), 124, b"\x80" + b"\xff" * 11), 124, "2\\^63"),
        "size_beyond": (edit(member("b"), 124, b"77777777777\0"), 124, "cut off"),
        "size_negative": (edit(member("b"), 124, b"\xff" * 12), 124, "not negative"),
        "size_letters": (edit(member("b"), 124, b"00000000zz \0"), 124, "octal"),
        "uid_negative": (edit(member("b"), 108, b"\xff" * 8), 108, "owners"),
        "mtime_far": (edit(member("b"), 136, b"\x80" + b"\0" * 6 + b"\x7f" * 5), 136, "2262"),
        "type_unknown": (edit(member("b"), 156, b"M"), 156, "entry type"),
        "no_name": (edit(member("b"), 0, b"\0"), 0, "name"),
        "dotdot": (a + member("x/../y"), 1024, "'..'"),
        "dotdot_link": (a + member("l", tarfile.LNKTYPE, link="../a"), 1024, "'..'"),
        "link_missing": (a + member("l", tarfile.LNKTYPE, link="b"), 1024, "hard link"),
        "link_later": (member("l", tarfile.LNKTYPE, link="a") + a, 0, "hard link"),
        "link_directory": (member("d", tarfile.DIRTYPE) + member("l", tarfile.LNKTYPE, link="d"), 512, "hard link"),
        "link_hidden": (
            member("d/f") + member("d") + member("d", tarfile.DIRTYPE) + member("l", tarfile.LNKTYPE, link="d/f"),
            1536,
            "hard link",
        ),
        "link_empty": (member("s", tarfile.SYMTYPE), 157, "link target"),
        "file_parent": (a + member("a/b"), 1024, "directory above"),
        "symlink_parent": (member("s", tarfile.SYMTYPE, link="t") + member("s/x/y"), 512, "directory above"),
        "root_is_file": (a + member("./"), 1024, "root"),
        "whiteout_parent": (member(".wh.d/x"), 0, "whiteout"),
        "whiteout_nothing": (member("d/.wh."), 0, "after '.wh.'"),
        "whiteout_dotdot": (member(".wh..."), 0, "after '.wh.'"),
        "opaque_in_file": (a + member("a/.wh..wh..opq"), 1024, "directory above"),
        "one_zero_block": (a + bytes(512) + member("b"), 1536, "second block"),
        "long_name_alone": (member("././@LongLink", b"L", b"abc\0"), 1024, "belongs"),
        "pax_alone": (pax(b"10 path=a\n") + END, 1024, "belongs"),
        "pax_then_global": (pax(b"10 path=a\n") + pax(b"", tarfile.XGLTYPE) + a, 1024, "extended header before"),
        "pax_huge": (edit(pax(b""), 124, b"00004000001\0"), 124, "1 MiB"),
        "pax_cut": (pax(b"10 path=a\n" * 60)[:1024], 124, "cut off"),
        "pax_length": (pax(b"x path=a\n") + a, 512, "decimal length"),
        "pax_overlong": (pax(b"99 path=a\n") + a, 512, "newline"),
        "pax_short": (pax(b"9 path=a\n\n") + a, 521, "decimal length"),
        "pax_no_equals": (pax(b"10 patha1\n") + a, 515, "KEY=VALUE"),
        "pax_nul": (pax(b"11 path=a\0\n") + a, 520, "NUL"),
        "pax_number": (pax(b"10 uid=-1\n") + a, 519, "non-negative"),
        "pax_mtime": (pax(b"14 mtime=1e10\n") + a, 521, "mtime"),
        "sparse_order": (sparse(b"512,1,0,1", 1024, b"ab"), 0, "in order"),
        "sparse_overlap": (sparse(b"0,2,1,1", 1024, b"abc"), 0, "in order"),
        "sparse_beyond": (sparse(b"0,1,1024,1", 1024, b"ab"), 0, "in order"),
        "sparse_total": (sparse(b"0,1,512,1", 1024, b"abc"), 0, "covers"),
        "sparse_old_cut": (edit(old_sparse, 482, b"\1"), 512, "further block"),
    }  # fmt: skip


def packed(form: int) -> bytes:
    """Write one tar with every kind of entry."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for name, kind, link in (
            ("./", tarfile.DIRTYPE, ""), ("d", tarfile.DIRTYPE, ""), ("d/" + "n" * 90 + "/f", tarfile.REGTYPE, ""),
            ("d/hard", tarfile.LNKTYPE, "d/" + "n" * 90 + "/f"), ("a", tarfile.LNKTYPE, "d/hard"),
            ("link", tarfile.SYMTYPE, "../d"), ("fifo", tarfile.FIFOTYPE, ""), ("null", tarfile.CHRTYPE, ""),
            ("disk", tarfile.BLKTYPE, ""), ("d/.wh.gone", tarfile.REGTYPE, ""), ("e/.wh..wh..opq", tarfile.REGTYPE, ""),
            ("d-e", tarfile.REGTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.mtime = kind, link, 0o4755, 1_600_000_000
            info.uid, info.gid, info.devmajor, info.devminor = 1000, 100, 1, 3
            data = name.encode() if kind == tarfile.REGTYPE and ".wh." not in name else b""
            info.size = len(data)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"SCHILY.xattr.user.name": name, "SCHILY.xattr.security.a": "", "mtime": "1.25"}
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def gnu(folder: Path, *options: str) -> bytes:
    same = ["--sort=name", "--owner=0", "--group=0", "--mtime=@1", "-b1"]
    command = ["tar", "-C", str(folder), *same, *options, "-c", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def main() -> None:
    listing = {}
    for name, (content, offset, message) in sorted(failures().items()):
        (HERE / "should_fail" / f"tar_{name}.tar").write_bytes(content)
        listing[f"tar_{name}.tar"] = {"offset": offset, "message": message}
    (HERE / "should_fail" / "tar_failures.json").write_text(json.dumps(listing, indent=1) + "\n")
    for title, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        (HERE / "good" / f"tar_{title}.tar").write_bytes(packed(form))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with open(folder / "sparse", "wb") as file:
            for piece in range(30):  # more pieces than one extension block of the old format holds
                file.seek(piece * 65536)
                file.write(b"%04d" % piece)
            file.truncate(30 * 65536 + 12345)
        (folder / ("long" * 40)).write_bytes(b"content")
        os.symlink("target" * 30, folder / "symlink")
        (folder / "hole").touch()
        os.truncate(folder / "hole", 100_000)
        for version in ("0.0", "0.1", "1.0"):
            content = gnu(folder, "-S", "--format=pax", f"--sparse-version={version}", "--pax-option=delete=?time")
            (HERE / "good" / f"tar_gnu_sparse_{version}.tar").write_bytes(content)
        (HERE / "good" / "tar_gnu_sparse_old.tar").write_bytes(gnu(folder, "-S", "--format=gnu"))


if __name__ == "__main__":
    main()
