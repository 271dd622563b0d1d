"""The functions of an ELF file, and names for them that outlive a build: for cross/link and cross/order."""

import re
import struct


def functions(path):
    """(address, size, name) of each function in the symbol table of a little-endian ELF file, by address."""
    with open(path, "rb") as file:
        image = file.read()
    wide = image[4] == 2
    table, size, count = (
        (struct.unpack_from("<Q", image, 40)[0], *struct.unpack_from("<HH", image, 58))
        if wide
        else (struct.unpack_from("<I", image, 32)[0], *struct.unpack_from("<HH", image, 46))
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ" if wide else "<10I", image, table + n * size) for n in range(count)]
    found = set()
    for _, kind, _, _, offset, length, strings, _, _, each in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        texts = sections[strings][4]
        for at in range(offset, offset + length, each):
            if wide:
                name, info, _, section, address, extent = struct.unpack_from("<IBBHQQ", image, at)
            else:
                name, address, extent, info, _, section = struct.unpack_from("<IIIBBH", image, at)
            if info & 15 == 2 and section:  # STT_FUNC, and not of another file
                end = image.index(b"\0", texts + name)
                # Thumb functions have odd addresses.
                found.add((address & ~1, extent, image[texts + name : end].decode()))
    return sorted(found)


def lasting(symbol):
    """A symbol's identifiers, without the hashes of crates and the numbers of places, which differ between builds and
    targets (Rust's mangling, RFC 2603). A symbol that is not Rust's is its own name."""
    # The compiler numbers its copies.
    symbol = re.sub(r"\.(llvm\.)?\d+$", "", symbol)
    if not symbol.startswith("_R"):
        return symbol
    identifiers, at = [], 2
    while at < len(symbol):
        number = re.compile(r"(\d+)_?").match(symbol, at)
        # Base-62 numbers: of a crate, of one of several alike, of a place earlier in the name.
        if skipped := re.compile(r"[sBG][0-9A-Za-z]*_").match(symbol, at):
            at = skipped.end()
        # The length of an array, or another constant: a type's letter and a number in hexadecimal.
        elif skipped := re.compile(r"[abchijlmnotxy]n?[0-9a-f]*_").match(symbol, at):
            at = skipped.end()
        elif number and int(number[1]):
            begin = number.end()
            at = begin + int(number[1])
            identifiers.append(symbol[begin:at])
        else:
            at += 1
    # The last is the crate that asked for it.
    return "::".join(identifiers) or symbol


def place(symbol):
    """The first identifiers of a lasting name: as much as cross/order.txt keeps."""
    return tuple(lasting(symbol).split("::")[:6])


def read_order(path):
    """The places in cross/order.txt. A line has the number of identifiers that it shares with the one before, and the rest."""
    places, last = set(), ()
    with open(path, encoding="ascii") as file:
        for line in file:
            if not line.startswith("#"):
                shared, rest = line.split()
                last = (*last[: int(shared)], *rest.split("::"))
                places.add(last)
    return places


def write_order(path, places, head):
    """Writes what `read_order` reads."""
    last = ()
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"# {line}\n" for line in head)
        for place_ in sorted(places):
            shared = 0
            # The last identifier is written, whatever is shared.
            while shared < min(len(last), len(place_) - 1) and last[shared] == place_[shared]:
                shared += 1
            file.write(f"{shared} {'::'.join(place_[shared:])}\n")
            last = place_
