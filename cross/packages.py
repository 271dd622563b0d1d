"""What is linked into the producer: cargo's word on every package, and how licences are read. Python's library alone."""

import functools
import glob
import json
import os
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = "kvs-producer-app"


def cargo(*words):
    """Without the network: what is not in Cargo.lock and fetched does not count."""
    done = subprocess.run(["cargo", *words, "--locked", "--offline"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"cargo {words[0]}: {done.stderr}cargo fetch --locked gets what is missing")
    return done.stdout


@functools.cache
def all_packages():
    """By name and version, each as in `cargo metadata`."""
    packages = json.loads(cargo("metadata", "--format-version", "1"))["packages"]
    return {(package["name"], package["version"]): package for package in packages}


def program():
    return next(package for (name, _), package in all_packages().items() if name == NAME)


def linked(target):
    """The packages that a camera build for `target` holds, the program first: no macros, no build scripts, no tests."""
    tree = cargo("tree", "--edges", "normal,no-proc-macro", "--target", target, "--prefix", "none", "--format", "{p}")
    lines = [line.split()[:2] for line in tree.splitlines() if line]
    keys = list(dict.fromkeys((name, version.removeprefix("v")) for name, version in lines))
    return [all_packages()[key] for key in keys]


def edges(target):
    """Which of them depends on which: {(name, version): [(name, version)]}."""
    tree = cargo("tree", "--edges", "normal,no-proc-macro", "--target", target, "--prefix", "depth", "--format", " {p}",
                 "--no-dedupe")
    path, found = [], {}
    for line in filter(None, tree.splitlines()):
        depth, name, version = line.split()[:3]
        key = (name, version.removeprefix("v"))
        del path[int(depth):]
        if path and key not in found.setdefault(path[-1], []):
            found[path[-1]].append(key)
        path.append(key)
        found.setdefault(key, [])
    return found


@functools.cache
def checksums():
    """SHA-256 of each package as the registry has it, from Cargo.lock."""
    with open(os.path.join(ROOT, "Cargo.lock"), encoding="utf-8") as file:
        blocks = file.read().split("[[package]]")
    field = lambda block, name: (re.search(rf'^{name} = "(.*)"$', block, re.M) or [None, None])[1]  # noqa: E731
    return {(field(block, "name"), field(block, "version")): field(block, "checksum") for block in blocks}


def licence(package):
    """An SPDX expression; cargo still permits a slash for OR."""
    return (package["license"] or "").replace("/", " OR ")


def licence_files(package):
    folder = os.path.dirname(package["manifest_path"])
    kinds = ("LICEN[SC]E*", "COPYING*", "COPYRIGHT*", "NOTICE*", "UNLICENSE*")
    files = {path for kind in kinds for path in glob.glob(os.path.join(folder, kind)) if os.path.isfile(path)}
    return sorted(files)


def satisfied(expression, allowed):
    """Whether the licences in `allowed` are enough for the SPDX expression (its annex D): OR leaves the choice."""
    words = re.findall(r"\(|\)|[^\s()]+", expression)

    def alternatives():
        fine = conjunction()
        while words and words[0] == "OR":
            words.pop(0)
            fine = conjunction() or fine
        return fine

    def conjunction():
        fine = single()
        while words and words[0] == "AND":
            words.pop(0)
            fine = single() and fine
        return fine

    def single():
        word = words.pop(0)
        if word == "(":
            fine = alternatives()
            words.pop(0)
            return fine
        if words and words[0] == "WITH":
            words.pop(0)
            word += " WITH " + words.pop(0)
        return word in allowed

    return bool(words) and alternatives()
