"""The parser's errors as one sentence."""

from __future__ import annotations

import re

from locus_lightning.errors import LocusError

_MOST = 300
"""Characters of a sentence; the parser likes to append the whole configuration."""


def mistake_behind(error: BaseException) -> LocusError | None:
    """The user's mistake that the parser met while it built an object, where there is one."""
    link: BaseException | None = error
    visited: set[int] = set()
    while link is not None and id(link) not in visited:  # an exception that is raised again and again may be its own context
        if isinstance(link, LocusError):
            return link
        visited.add(id(link))
        link = link.__cause__ or link.__context__
    return None


def lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone: torch.distributed's own, or gloo's, which comes as a RuntimeError."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    told = str(error).lower()
    return bool(kinds & {"DistBackendError", "DistNetworkError"}) or ("gloo" in told and ("closed" in told or "reset" in told))


def refused_by_a_class(error: BaseException) -> str:
    """Which class could not be built, and why: the innermost ``__init__`` that the error came out of."""
    subject, trace = "a class", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
            subject = type(frame.f_locals["self"]).__name__
        trace = trace.tb_next
    return f"{subject} cannot be made of its settings ({type(error).__name__}: {error}); look for one that is null, or of another type or size."


def one_sentence(message: str) -> str:
    """The parser's message as the dotted key and what is wrong there, without its usage, trees, types and repetitions."""
    lines = [line.strip(" -\t") for line in message.splitlines() if line.strip()]
    kept = [
        line
        for line in lines
        if not re.match(r"(usage:|Help for|For more|Given value type|Problem with given class_path|Subtypes:|Errors:$)", line)
    ]
    text = " ".join(dict.fromkeys(kept))
    for pattern, plain in _NOISE:
        text = re.sub(pattern, plain, text)
    keys = [key for key in re.findall(r'Parser key "([^"]+)":', text) if key != "trainer" or "trainer." not in text]
    body = re.sub(r'Parser key "[^"]+": *', "", text).strip()
    dotted = ".".join(key for i, key in enumerate(keys) if i == 0 or key != keys[i - 1])
    sentence = re.sub(r"\s+", " ", f"{dotted}: {_plain(body)}" if dotted else _plain(body)).strip()
    return sentence if len(sentence) <= _MOST else sentence[:_MOST].rsplit(" ", 1)[0] + " ..."


def _plain(body: str) -> str:
    """A value that is of no accepted type, in one clause; other messages stay."""
    values = [value.strip("'\" .") for value in re.findall(r"(?:Given|Got) value: (\S+)", body)]
    wanted = list(dict.fromkeys(re.findall(r"[Ee]xpected (?:a )?(one of \[.*?\]|[a-zA-Z_][\w.]*\w)", body)))
    rest = re.sub(r"(?:Given|Got) value: \S+|[Ee]xpected (?:a )?(one of \[.*?\]|[a-zA-Z_][\w.]*)", "", body).strip(" ,.]")
    if values and wanted:
        return f"{values[-1]} is given where {' or '.join(wanted)} is expected"
    if values and not rest:
        return f"there is no class or value {values[-1]!r}; see locus fit --help"
    return body


_NOISE = (
    (r"Does not validate against any of the Union subtypes ?", ""),
    (r"Subtypes: \[[^\]]*\] ?", ""),
    (r"Errors: ?", ""),
    (r"Expected a <class 'NoneType'>[,.]? ?", ""),
    (r"Expected a dot import path string: (\S+)", r"Given value: \1"),
    (r"Expected a path but \S+ either not accessible or invalid ?", ""),
    (r"Type typing\.\S+\[\[.*?\], [^\]]*\] expects a function or a callable class: ", ""),
    (r"Discard init_args.*|Not a valid subclass of [^.]*\.", ""),
    (r"Given value: NestedArg\(key='[^']*', val='?([^')]*)'?\).*", r"Given value: \1"),
    (r"(Got|Given) value: (Namespace|<class).*", ""),
    (r"Expected a typing.Literal\[", "expected one of ["),
    (r"Expected a <class '([\w.]+)'>", r"expected \1"),
    (r"<class '([\w.]+)'>", r"\1"),
)
"""What the parser says that helps nobody, and what stands in its place."""
