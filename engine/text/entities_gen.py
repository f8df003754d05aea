#!/usr/bin/env python3
"""Writes entities.inc: the HTML named character references as C tables.

    python3 entities_gen.py > entities.inc

The list is the W3C one as the Python standard library has it
(html.entities.html5).  First table: every name, its code points, and whether
it also counts without a semicolon.  Second table: the lower-case names whose
value changes when it is upper-cased, so that &EACUTE; can be read.
Both are sorted by name in byte order.
"""
from html.entities import html5


def rows(cells):
    line = "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 100:
            yield line
            line = "   "
        line += " " + cell + ","
    yield line


def code_points(value, count):
    points = [f"0x{ord(c):x}" for c in value]
    return ", ".join(points + ["0"] * (count - len(points)))


names = sorted({name.rstrip(";") for name in html5})
upper = [n for n in names if n == n.lower() and html5[n + ";"].upper() != html5[n + ";"]]

print("/* Made by entities_gen.py; do not edit.  Sorted by name in byte order. */")
print("/* clang-format off */")
print("static const entity entities[] = {")
for line in rows(
    f'{{ "{n}", {{ {code_points(html5[n + ";"], 2)} }}, {int(n in html5)} }}' for n in names
):
    print(line)
print("};")
print()
print("static const upper_entity upper_entities[] = {")
for line in rows(f'{{ "{n}", {{ {code_points(html5[n + ";"].upper(), 3)} }} }}' for n in upper):
    print(line)
print("};")
print("/* clang-format on */")
