#!/usr/bin/env python3
"""Write the initramfs that manifests describe, as a cpio archive ("newc").

usage: pack.py MANIFEST... [--only-packages] [--without PATH]... [--beside MANIFEST]
               [--source NAME=DIRECTORY]... --mtime SECONDS --output FILE

With --beside the archive is one that is unpacked over that manifest's: no file of it
may be covered.

The archive depends on the manifests, the files that they name and --mtime, and on
nothing else: entries are sorted, owned by root, and numbered in their order.
Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import argparse
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

LIBRARY_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "lib", "usr/lib")
LOADER = "ld-linux-x86-64.so.2"


class ManifestError(Exception):
    """Something the manifest asks for cannot be had; the text says what and where."""


class Archive:
    """The entries by path, before they are written."""

    def __init__(self, sources, beside):
        self.sources = sources
        # What the other archive has, by path: directories (which may be in both) or not.
        self.beside = beside
        self.entries = {}
        self.libraries = set()

    def add(self, path, mode, data=b"", device=(0, 0)):
        if not path.startswith("/") or str(PurePosixPath(path)) != path or ".." in path.split("/"):
            raise ManifestError(f"'{path}' is not a plain absolute path")
        if path in self.entries:
            raise ManifestError(f"'{path}' is listed twice")
        if path in self.beside and not (stat.S_ISDIR(mode) and self.beside[path] == "dir"):
            raise ManifestError(f"'{path}' would cover what the other archive has there")
        self.entries[path] = (mode, data, device)

    def locate(self, source):
        """The file that SOURCE means on this machine."""
        name, colon, path = source.partition(":")
        if not colon or name not in self.sources:
            raise ManifestError(f"source '{source}' does not start with one of {sorted(self.sources)}")
        return self.sources[name] / path.lstrip("/")

    def file(self, path, mode, source):
        found = self.locate(source)
        if not found.is_file():
            raise ManifestError(f"'{source}' is not a file here (looked for {found})")
        self.add(path, stat.S_IFREG | mode, found.read_bytes())

    def tool(self, path, source):
        self.file(path, 0o755, source)
        self.add_libraries(self.locate(source))
        self.check_symbols(self.locate(source))

    def library_directories(self):
        debian = [self.sources["debian"] / directory for directory in LIBRARY_DIRECTORIES]
        return [self.sources["absent"], *debian] if "absent" in self.sources else debian

    def check_symbols(self, binary):
        """The packed loader itself binds all of BINARY's symbols, without starting it (ld.so(8))."""
        directories = [directory for directory in self.library_directories() if directory.is_dir()]
        loader = next(directory / LOADER for directory in directories if (directory / LOADER).is_file())
        bound = subprocess.run(
            [loader, "--library-path", ":".join(map(str, directories)), binary],
            env={"LD_TRACE_LOADED_OBJECTS": "1", "LD_WARN": "yes", "LD_BIND_NOW": "yes"},
            capture_output=True,
            text=True,
        )
        wrong = [line for line in (bound.stdout + bound.stderr).splitlines() if re.search(r"not found|undefined|no version", line)]
        if bound.returncode or wrong:
            what = "; ".join(line.strip() for line in wrong) or f"the loader ends with {bound.returncode}"
            raise ManifestError(f"{binary.name} would not start: {what}; initramfs/absent or the packages lack it")

    def add_libraries(self, binary):
        """The shared libraries that BINARY names, and theirs, under /usr/lib."""
        dynamic = subprocess.run(["readelf", "-dW", binary], check=True, capture_output=True, text=True).stdout
        for name in [LOADER, *re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)]:
            if name in self.libraries:
                continue
            self.libraries.add(name)
            for directory in self.library_directories():
                library = directory / name
                if library.is_file():
                    break
            else:
                raise ManifestError(
                    f"{binary.name} needs {name}, which no listed package has; "
                    f"`apt-file search {name}` names the package to add"
                )
            self.add(f"/usr/lib/{name}", stat.S_IFREG | 0o755, library.read_bytes())
            self.add_libraries(library)

    def shared(self, name):
        """A library that the other archive brings."""
        if name in self.libraries:
            raise ManifestError(f"{name} is packed already; list what is shared first")
        self.libraries.add(name)

    def applets(self, directory, target):
        """Links for all that a busybox which is packed can do, but for what is there by another name."""
        path = f"{directory}/{target}"
        if path not in self.entries:
            raise ManifestError(f"'{path}' has to be listed before its applets")
        _, data, _ = self.entries[path]
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch) / target
            program.write_bytes(data)
            program.chmod(0o755)
            listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True, env={}).stdout
        for name in sorted(set(listed.split())):
            link = f"{directory}/{name}"
            if link not in self.beside and link not in self.entries:
                self.add(link, stat.S_IFLNK | 0o777, target.encode())

    def pciids(self, path, source, vendors):
        """The classes and these vendors' devices of a pci.ids; a vendor that it lacks is a mistake in the list."""
        found = self.locate(source)
        if not found.is_file():
            raise ManifestError(f"'{source}' is not a file here (looked for {found})")
        kept, missing, keep = [], set(vendors), False
        for line in found.read_bytes().splitlines(keepends=True):
            if not line.startswith((b"\t", b"#")) and line.strip():
                name = line[:4].decode()
                keep = line.startswith(b"C ") or name in vendors
                missing.discard(name)
            if keep and line.strip() and not line.startswith((b"\t\t", b"#")):
                kept.append(line)
        if missing:
            raise ManifestError(f"'{source}' knows no vendor {' '.join(sorted(missing))}")
        self.add(path, stat.S_IFREG | 0o644, b"".join(kept))

    def tree(self, path, source):
        top = self.locate(source)
        self.add(path, stat.S_IFDIR | 0o755)
        for found in sorted(top.rglob("*")):
            target = f"{path}/{found.relative_to(top)}"
            if found.is_symlink():
                self.add(target, stat.S_IFLNK | 0o777, os.readlink(found).encode())
            elif found.is_dir():
                self.add(target, stat.S_IFDIR | 0o755)
            elif found.is_file():
                self.add(target, stat.S_IFREG | 0o644, found.read_bytes())

    def line(self, kind, words):
        """One line of the manifest; ValueError when it has too few or too many words."""
        if kind == "dir":
            path, mode = words
            self.add(path, stat.S_IFDIR | int(mode, 8))
        elif kind == "link":
            path, target = words
            self.add(path, stat.S_IFLNK | 0o777, target.encode())
        elif kind == "node":
            path, mode, major, minor = words
            self.add(path, stat.S_IFCHR | int(mode, 8), device=(int(major), int(minor)))
        elif kind == "file":
            path, mode, source = words
            self.file(path, int(mode, 8), source)
        elif kind == "tool":
            path, source = words
            self.tool(path, source)
        elif kind == "shared":
            (name,) = words
            self.shared(name)
        elif kind == "applets":
            directory, target = words
            self.applets(directory, target)
        elif kind == "pciids":
            path, source, *vendors = words
            self.pciids(path, source, vendors)
        elif kind == "tree":
            path, source = words
            self.tree(path, source)
        else:
            raise ManifestError(f"unknown kind '{kind}'")

    def write(self, output, mtime):
        for path in self.entries:
            parent = str(PurePosixPath(path).parent)
            if parent != "/" and not stat.S_ISDIR(self.entries.get(parent, (0,))[0]):
                raise ManifestError(f"'{path}' is below '{parent}', which is not listed as a directory")
        for inode, (path, (mode, data, device)) in enumerate(sorted(self.entries.items()), 1):
            output.write(record(inode, path[1:], mode, data, device, mtime))
        output.write(record(0, "TRAILER!!!", 0, b"", (0, 0), 0))


def record(inode, name, mode, data, device, mtime):
    """One newc record: a header of 13 eight-digit numbers, the name, the data, padded to 4."""
    links = 2 if stat.S_ISDIR(mode) else 1
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, mtime, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return padded(header) + padded(data)


def padded(data):
    return data + b"\0" * (-len(data) % 4)


def manifest_lines(manifests):
    """(place, kind, words) of every line that says something."""
    for manifest in manifests:
        for number, text in enumerate(manifest.read_text().splitlines(), 1):
            words = text.split()
            if words and not words[0].startswith("#"):
                yield f"{manifest}:{number}", words[0], words[1:]


def paths_of(manifest):
    """path -> kind of all that a manifest lists by its path."""
    lines = manifest_lines([manifest] if manifest else [])
    return {words[0]: kind for _, kind, words in lines if words and words[0].startswith("/")}


def main():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--only-packages", action="store_true")
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--source", action="append", default=[])
    parser.add_argument("--mtime", type=int)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    if options.only_packages:
        print("\n".join(words[0] for _, kind, words in manifest_lines(options.manifests) if kind == "package"))
        return
    if options.mtime is None or options.output is None:
        parser.error("--mtime and --output are needed")

    sources = {name: Path(directory) for name, _, directory in (source.partition("=") for source in options.source)}
    archive = Archive(sources, paths_of(options.beside))
    for place, kind, words in manifest_lines(options.manifests):
        if kind == "package" and len(words) < 2:
            sys.exit(f"{place}: package '{' '.join(words)}' has no licence")
        if kind == "package" or (words and words[0] in options.without):
            continue
        try:
            archive.line(kind, words)
        except ManifestError as error:
            sys.exit(f"{place}: {error}")
        except ValueError as error:
            sys.exit(f"{place}: '{kind} {' '.join(words)}' is malformed: {error}")
    try:
        with options.output.open("wb") as output:
            archive.write(output, options.mtime)
    except ManifestError as error:
        sys.exit(f"{options.manifests[0]}: {error}")


if __name__ == "__main__":
    main()
