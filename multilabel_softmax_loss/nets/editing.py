"""The text of a prototxt edited where a message changes, so that comments and layout stay everywhere else."""

from __future__ import annotations

import difflib
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

STRING = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
TOKEN = re.compile(rf"""#[^\n]*|{STRING}|[{{}}<>\[\]:;,]|[^\s#"'{{}}<>\[\]:;,]+""")
Span = Tuple[int, int]
Edit = Tuple[int, int, str]  # from, to, and what to put there


class Statement(NamedTuple):
    """A field of a message with its value: where it stands, and for a message in braces, where its inside does."""

    name: str
    start: int
    end: int
    inside: Optional[Span]


def statements(text: str, span: Span) -> Iterator[Statement]:
    """The fields in this part of a text that parses, in order; those of inner messages are left to their own calls."""
    tokens = [token for token in TOKEN.finditer(text, *span) if token.group()[0] != "#"]
    place = 0
    while place < len(tokens):
        name = tokens[place]
        place += 1
        if tokens[place].group() == ":":
            place += 1
        first = place
        depth = 0
        while True:  # one value: a word, strings side by side, or all up to the closing brace
            word = tokens[place].group()
            depth += (word in "{<[") - (word in "}>]")
            place += 1
            strings = word[0] in "\"'" and place < len(tokens) and tokens[place].group()[0] in "\"'"
            if depth == 0 and not strings:
                break
        inside = (tokens[first].end(), tokens[place - 1].start()) if tokens[first].group() in "{<" else None
        yield Statement(name.group(), name.start(), tokens[place - 1].end(), inside)
        if place < len(tokens) and tokens[place].group() in ";,":
            place += 1


def edited(text: str, edits: Sequence[Edit]) -> str:
    """The text with these edits, which do not overlap; a line that only held what is taken out goes altogether.

    What is put in has the line ends of the text.
    """
    ends = "\r\n" if "\r\n" in text else "\n"
    for start, end, put in sorted(edits, reverse=True):
        put = put.replace("\n", ends)
        if not put:
            line, rest = text.rfind("\n", 0, start) + 1, re.compile(r"[ \t]*(\r?\n|\Z)").match(text, end)
            if rest and not text[line:start].strip():
                start, end = line, rest.end()
            else:
                start = len(text[:start].rstrip(" \t"))
        text = text[:start] + put + text[end:]
    return text


def difference(text: str, made: str, path: str, name: str) -> str:
    """The diff that makes one text the other, such as patch takes it: only a line feed ends a line."""
    before, after = (re.findall(r".*\n|.+", one) for one in (text, made))
    lines = difflib.unified_diff(before, after, path, name)
    return "".join(line if line[-1] == "\n" else f"{line}\n\\ No newline at end of file\n" for line in lines)


def field_text(message: Any, name: str, indent: Optional[str]) -> str:
    """A field of a message as prototxt, in lines after the first of which comes `indent`; in one line where None."""
    from google.protobuf import text_format

    alone = type(message)()
    alone.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.name != name:
            alone.ClearField(field.name)
    made = text_format.MessageToString(alone, as_one_line=indent is None).strip()
    made = re.sub(r"(?<=: )(-?\d+)\.0(?=\s|$)", r"\1", made)
    # Single quotes leave JSON readable.
    made = re.sub(
        r'(?<=param_str: )"((?:\\"|[^"\\\'])*)"', lambda found: "'" + found[1].replace('\\"', '"') + "'", made
    )
    return made if indent is None else made.replace("\n", "\n" + indent)


def message_edits(text: str, span: Span, old: Any, new: Any) -> List[Edit]:
    """What to change in the fields between braces, which parse as the message `old`, so that they say `new`."""
    found = list(statements(text, span))
    where: Dict[str, List[Statement]] = {}
    for statement in found:
        where.setdefault(statement.name, []).append(statement)
    edits: List[Edit] = []
    inner: List[Edit] = []
    for name, (first, *others) in where.items():
        there = name in {field.name for field, _ in new.ListFields()}
        if there and field_text(old, name, None) == field_text(new, name, None):
            continue
        if there and first.inside and not others and type(getattr(old, name)) is type(getattr(new, name)):
            inner += message_edits(text, first.inside, getattr(old, name), getattr(new, name))
            continue
        edits.append((first.start, first.end, field_text(new, name, indent_of(text, first)) if there else ""))
        edits += [(other.start, other.end, "") for other in others]
    added = [field.name for field, _ in new.ListFields() if field.name not in where]
    if added:
        indent = indent_of(text, found[0]) if found else None
        between = " " if indent is None else "\n" + indent
        pieces = [piece for name in added for piece in entries(new, name, indent)]
        gone = [place for place, edit in enumerate(edits) if not edit[2]][: len(pieces)]
        for place in gone[:-1]:  # an entry in place of an entry, so that the comment of each stays beside it
            edits[place] = (*edits[place][:2], pieces.pop(0))
        lines = between.join(pieces)
        if gone:
            edits[gone[-1]] = (*edits[gone[-1]][:2], lines)
        else:
            last = found[-1].end if found else span[0]
            rest = re.compile(r"[ \t]*#[^\r\n]*").match(text, last)  # the comment of the last field stays beside it
            last = rest.end() if rest and indent is not None else last
            edits.append((last, last, between + lines))
    return [with_comments(text, edit) for edit in edits] + inner


def entries(message: Any, name: str, indent: Optional[str]) -> List[str]:
    """A field of a message as prototxt: one text, or for a repeated field one for each of its values."""
    field = message.DESCRIPTOR.fields_by_name[name]
    alone = [message]
    if field.label == field.LABEL_REPEATED:
        alone = [type(message)(**{name: [value]}) for value in getattr(message, name)]
    return [field_text(one, name, indent) for one in alone]


def with_comments(text: str, edit: Edit) -> Edit:
    """An edit that keeps the comments amid what it takes out, each on a line of its own before what it puts there."""
    start, end, put = edit
    comments = [token.group().rstrip() for token in TOKEN.finditer(text, start, end) if token.group()[0] == "#"]
    if not comments:
        return edit
    line = text[text.rfind("\n", 0, start) + 1 : start]
    indent = line[: len(line) - len(line.lstrip())]
    lines = [*comments, put] if put or text[end:].partition("\n")[0].strip() else comments
    return start, end, ("\n" + indent).join(lines)


def indent_of(text: str, statement: Statement) -> Optional[str]:
    """What stands before a field on its line, if that is blank and the next field is not on that line; else None."""
    line = text.rfind("\n", 0, statement.start) + 1
    before, rest = text[line : statement.start], text[statement.end :].partition("\n")[0].strip()
    return before if not before.strip() and (not rest or rest[0] == "#") else None


def net_edits(text: str, old: Any, new: Sequence[Any], inputs: Optional[Any] = None) -> List[Edit]:
    """What to change in the text of a net so that its layers are `new`, one for each of `old`, or None to leave it out.

    `inputs` is the Input layer in place of `input:` and its shapes, if the net has these.
    """
    from google.protobuf import text_format

    edits: List[Edit] = []
    keyword = "layers" if old.layers else "layer"
    layers = iter(zip(getattr(old, keyword), new))
    for statement in statements(text, (0, len(text))):
        if statement.name == keyword:
            before, after = next(layers)
            if after is None:
                edits.append((statement.start, statement.end, ""))
                continue
            if statement.name == "layers":
                edits.append((statement.start, statement.start + len("layers"), "layer"))
            edits += message_edits(text, statement.inside or (0, 0), before, after)
        elif statement.name in ("input", "input_shape", "input_dim"):
            made = "" if inputs is None else f"layer {{\n{text_format.MessageToString(inputs, indent=2)}}}"
            edits.append(with_comments(text, (statement.start, statement.end, made)))
            inputs = None
    return edits
