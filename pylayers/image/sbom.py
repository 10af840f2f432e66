"""A bill of materials from the package databases in an image's tree, read straight from its layers.

Read are dpkg (status, status.d), apk (installed), Python (*.dist-info/METADATA, *.egg-info/PKG-INFO) and npm
(node_modules/*/package.json). An rpm database is a format of its own that isn't read: a note in the document says so
where one is there. Sources: SPDX 2.3, CycloneDX 1.5, package-url specification.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from pylayers.diff.merge import merge_layers
from pylayers.image.attestation import Predicate
from pylayers.oci.digest import hex_of
from pylayers.record import record
from pylayers.store.entry import FLAG_HARDLINK, EntryTable
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

SPDX_TYPE = "https://spdx.dev/Document"
CYCLONEDX_TYPE = "https://cyclonedx.org/bom"
FILE_LIMIT_BYTES = 64 << 20
TOOL = "pylayers"
RPM_DATABASES = (b"var/lib/rpm/", b"usr/lib/sysimage/rpm/")
PYTHON_METADATA = re.compile(rb"(?:^|/)[^/]+\.(?:dist-info/METADATA|egg-info/PKG-INFO)\Z")
NODE_PACKAGE = re.compile(rb"(?:^|/)node_modules/(?:@[^/]+/)?[^/]+/package\.json\Z")


@record
class Package:
    """One installed package; `found_in` is the file that tells of it."""

    name: str
    version: str
    url: str
    found_in: str
    license: str = ""


def make_sbom(layers: Sequence[Layer], form: str, epoch_s: int) -> Predicate:
    """Return the predicate in the given form, "spdx" or "cyclonedx". Equal trees give equal documents."""
    table = merge_layers(layers)
    packages = sorted(set(find_packages(layers, table)), key=lambda one: (one.url, one.found_in))
    notes = []
    if any(table.path(entry).startswith(RPM_DATABASES) for entry in table):
        notes.append("an rpm database is in the tree, which was not read")
    if form == "cyclonedx":
        return Predicate(CYCLONEDX_TYPE, write_cyclonedx(packages, notes, epoch_s), "sbom.cdx.json")
    return Predicate(SPDX_TYPE, write_spdx(packages, notes, epoch_s), "sbom.spdx.json")


def find_packages(layers: Sequence[Layer], table: EntryTable) -> Iterator[Package]:
    """Yield every package that a database in the tree names."""
    system = read_system(layers, table)
    for entry in table:
        if not stat.S_ISREG(entry.mode) or entry.size_bytes > FILE_LIMIT_BYTES:
            continue
        path = table.path(entry)
        name = path.decode(errors="replace")
        if path == b"var/lib/dpkg/status" or (path.startswith(b"var/lib/dpkg/status.d/") and b".md5" not in path):
            yield from read_dpkg(read_entry(layers, table, entry), name, system)
        elif path in (b"lib/apk/db/installed", b"usr/lib/apk/db/installed"):
            yield from read_apk(read_entry(layers, table, entry), name, system)
        elif PYTHON_METADATA.search(path):
            yield from read_python(read_entry(layers, table, entry), name)
        elif NODE_PACKAGE.search(path):
            yield from read_node(read_entry(layers, table, entry), name)


def read_entry(layers: Sequence[Layer], table: EntryTable, entry: Entry) -> str:
    """Return a file of the tree as text; a hard link is the file that it names."""
    if entry.flags & FLAG_HARDLINK:
        from pylayers.diff.merge import find_row

        row = find_row(table, table.link(entry))
        if row is None:
            return ""
        entry = table.entry(row)
    descriptor = layers[entry.layer].open_tar()
    try:
        return os.pread(descriptor, entry.size_bytes, entry.data_offset).decode(errors="replace")
    finally:
        os.close(descriptor)


def read_system(layers: Sequence[Layer], table: EntryTable) -> str:
    """Return the distribution's id from os-release, which a package's URL names."""
    from pylayers.diff.resolve import find_path

    for path in (b"etc/os-release", b"usr/lib/os-release"):
        row = find_path(table, path).row
        if row is not None and stat.S_ISREG(table.entry(row).mode):
            text = read_entry(layers, table, table.entry(row))
            values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            return values.get("ID", "").strip("\"'")
    return ""


def read_fields(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of `Name: value` lines."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith((" ", "\t")):
                fields.setdefault(name, value.strip())
        if fields:
            yield fields


def read_dpkg(text: str, path: str, system: str) -> Iterator[Package]:
    """Yield the packages of a dpkg database; one that was removed has no files."""
    for fields in read_fields(text):
        name, version = fields.get("Package"), fields.get("Version")
        if not name or not version or not fields.get("Status", "install ok installed").endswith(" installed"):
            continue
        query = f"?arch={quote(fields['Architecture'], safe='')}" if "Architecture" in fields else ""
        url = f"pkg:deb/{quote(system or 'debian', safe='')}/{quote(name, safe='')}@{quote(version, safe='')}{query}"
        yield Package(name, version, url, path)


def read_apk(text: str, path: str, system: str) -> Iterator[Package]:
    """Yield the packages of an apk database."""
    for fields in read_fields(text):
        name, version = fields.get("P"), fields.get("V")
        if name and version:
            query = f"?arch={quote(fields['A'], safe='')}" if "A" in fields else ""
            base = f"pkg:apk/{quote(system or 'alpine', safe='')}/{quote(name, safe='')}"
            yield Package(name, version, f"{base}@{quote(version, safe='')}{query}", path, fields.get("L", ""))


def read_python(text: str, path: str) -> Iterator[Package]:
    """Yield the distribution that a METADATA file describes."""
    fields = next(read_fields(text.partition("\n\n")[0]), {})
    name, version = fields.get("Name"), fields.get("Version")
    if name and version:
        usual = re.sub(r"[-_.]+", "-", name).lower()
        url = f"pkg:pypi/{quote(usual, safe='')}@{quote(version, safe='')}"
        yield Package(name, version, url, path, fields.get("License-Expression", ""))


def read_node(text: str, path: str) -> Iterator[Package]:
    """Yield the package that a package.json describes."""
    try:
        document = json.loads(text)
    except ValueError:
        return
    if not isinstance(document, dict):
        return
    name, version = document.get("name"), document.get("version")
    if isinstance(name, str) and isinstance(version, str) and name and version:
        given = document.get("license")
        url = f"pkg:npm/{'/'.join(quote(part, safe='') for part in name.split('/'))}@{quote(version, safe='')}"
        yield Package(name, version, url, path, given if isinstance(given, str) else "")


def write_spdx(packages: Sequence[Package], notes: Sequence[str], epoch_s: int) -> Mapping[str, object]:
    """Return an SPDX 2.3 document."""
    content = "\n".join(f"{one.url} {one.found_in}" for one in packages)
    listed = [
        {
            "SPDXID": f"SPDXRef-Package-{hex_of(f'{one.url} {one.found_in}'.encode())[:16]}",
            "name": one.name,
            "versionInfo": one.version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "sourceInfo": f"found in /{one.found_in}",
            "externalRefs": [
                {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": one.url}
            ],
        }
        for one in packages
    ]
    document: dict[str, object] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "image",
        "documentNamespace": f"https://spdx.org/spdxdocs/{TOOL}-{hex_of(content.encode())}",
        "creationInfo": {"created": show_time(epoch_s), "creators": [f"Tool: {TOOL}"]},
        "packages": listed,
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": one["SPDXID"]}
            for one in listed
        ],
    }
    if notes:
        document["comment"] = "; ".join(notes)
    return document


def write_cyclonedx(packages: Sequence[Package], notes: Sequence[str], epoch_s: int) -> Mapping[str, object]:
    """Return a CycloneDX 1.5 document."""
    components = []
    for one in packages:
        component: dict[str, object] = {
            "type": "library",
            "bom-ref": f"{one.url}#{hex_of(one.found_in.encode())[:8]}",
            "name": one.name,
            "version": one.version,
            "purl": one.url,
            "properties": [{"name": f"{TOOL}:found-in", "value": f"/{one.found_in}"}],
        }
        components.append(component)
    metadata: dict[str, object] = {
        "timestamp": show_time(epoch_s),
        "tools": {"components": [{"type": "application", "name": TOOL}]},
    }
    if notes:
        metadata["properties"] = [{"name": f"{TOOL}:note", "value": note} for note in notes]
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": metadata, "components": components,
    }  # fmt: skip


def show_time(epoch_s: int) -> str:
    """Return a time as both forms write it."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
