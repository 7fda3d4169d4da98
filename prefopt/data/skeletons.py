"""Chat templates rendered once per sequence of roles, where what people wrote cannot change what the template does.

Jinja takes tens of microseconds for a conversation, and a million pairs have three million of them. Most templates only
copy contents, whole or trimmed, between texts that follow from the roles. `copies_contents` proves this from the
template's syntax tree: every content goes into output through nothing but `+`, `~` and `trim`. For such a template a
conversation of marks, rendered by the tokenizer itself, shows where contents go for all conversations of these roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum

import jinja2
import jinja2.sandbox
from jinja2 import nodes

from prefopt.records import Message

_Render = Callable[[Sequence[Message], bool], str]
# (text, index of the message whose content follows, whether it is trimmed); the last text has no content after it.
_Skeleton = tuple[tuple[tuple[str, int, bool], ...], str]
_MOST_SKELETONS = 1024
_MOST_MESSAGES = 64
# Private characters between spaces that no template has: where they are gone the content was trimmed.
_SPACE = "\u2003"
_MARK = re.compile("(\u2003?)\ue000([0-9]+)\ue001(\u2003?)")
_FOREIGN = re.compile("[\u2003\ue000\ue001]")


class Skeletons:
    """Renders conversations by copying contents into what the template writes around them.

    Args:
        template: Source of the chat template.
        render: Renders a conversation with the tokenizer, for an answer to follow or not.
    """

    def __init__(self, template: object, render: _Render) -> None:
        self._render = render
        self._usable = isinstance(template, str) and not _FOREIGN.search(template) and copies_contents(template)
        self._known: dict[tuple[tuple[str, ...], bool], _Skeleton | None] = {}

    def render(self, messages: Sequence[Message], *, generate: bool) -> str | None:
        """The text of a conversation; None where the template has to be asked.

        Args:
            messages: The conversation.
            generate: Whether an answer is to follow.
        """
        if not self._usable:
            return None
        key = (tuple([message.role for message in messages]), generate)
        if key in self._known:
            skeleton = self._known[key]
        elif len(self._known) < _MOST_SKELETONS and len(messages) <= _MOST_MESSAGES:
            skeleton = self._known[key] = self._made(messages, generate)
        else:
            return None
        return None if skeleton is None else _filled(skeleton, messages)

    def _made(self, messages: Sequence[Message], generate: bool) -> _Skeleton | None:
        marks = [Message(m.role, f"{_SPACE}\ue000{index}\ue001{_SPACE}") for index, m in enumerate(messages)]
        try:
            rendered = self._render(marks, generate)
            expected = self._render(messages, generate)
        # Whatever a template may raise: the conversation itself is rendered by the tokenizer and raises it again.
        except Exception:
            return None
        skeleton = _taken_apart(rendered)
        return skeleton if skeleton is not None and _filled(skeleton, messages) == expected else None


def _taken_apart(rendered: str) -> _Skeleton | None:
    slots, end = [], 0
    for mark in _MARK.finditer(rendered):
        if bool(mark[1]) != bool(mark[3]):
            return None  # trimmed on one side
        slots.append((rendered[end : mark.start()], int(mark[2]), not mark[1]))
        end = mark.end()
    texts = [text for text, _, _ in slots] + [rendered[end:]]
    return None if any(_FOREIGN.search(text) for text in texts) else (tuple(slots), rendered[end:])


def _filled(skeleton: _Skeleton, messages: Sequence[Message]) -> str:
    slots, last = skeleton
    parts = []
    for text, index, trimmed in slots:
        content = messages[index].content
        parts.append(text)
        parts.append(content.strip() if trimmed else content)
    parts.append(last)
    return "".join(parts)


# ---- the proof -------------------------------------------------------------------------------------------------------


class _Kind(Enum):
    """What the value of an expression can tell of contents."""

    CLEAN = "nothing"
    MESSAGES = "a message, or a list of them"
    CONTENT = "the content of one message, as it is or trimmed"
    TEXT = "contents and other texts in a row"


class _Opaque(Exception):  # noqa: N818 - not an error: the template is rendered as usual
    """The template does something with contents that is not copying, or that is not known here."""


def copies_contents(template: str) -> bool:
    """Whether a chat template does nothing with contents but to write them out, whole or trimmed.

    Args:
        template: Jinja source.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(template)
        proof = _Proof()
        before: dict[str, _Kind] | None = None
        while before != proof.names:  # a name may be used, in a loop, above where it is set
            before = dict(proof.names)
            for node in tree.body:
                proof.statement(node)
    except (jinja2.TemplateSyntaxError, _Opaque):
        return False
    return True


class _Proof:
    def __init__(self) -> None:
        self.names: dict[str, _Kind] = {"messages": _Kind.MESSAGES}

    def statement(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Output):
            for part in node.nodes:
                if not isinstance(part, nodes.TemplateData):
                    self._text(part)
        elif isinstance(node, nodes.If):
            self._truth(node.test)
            for inner in (*node.body, *node.elif_, *node.else_):
                self.statement(inner)
        elif isinstance(node, nodes.For):
            self._loop(node)
        elif isinstance(node, nodes.Assign):
            self._set(node.target, self.kind(node.node))
        elif type(node).__name__ not in ("Break", "Continue"):
            raise _Opaque

    def _loop(self, node: nodes.For) -> None:
        over = self.kind(node.iter)
        if node.recursive or over not in (_Kind.CLEAN, _Kind.MESSAGES):
            raise _Opaque
        self._set(node.target, over)
        if node.test is not None:
            self._truth(node.test)
        for inner in (*node.body, *node.else_):
            self.statement(inner)

    def _set(self, target: nodes.Node, kind: _Kind) -> None:
        if isinstance(target, nodes.Name):
            before = self.names.get(target.name, kind)
            self.names[target.name] = _either(before, kind)
        elif kind is not _Kind.CLEAN or not isinstance(target, nodes.NSRef):
            raise _Opaque

    def _truth(self, node: nodes.Node) -> None:
        """A condition may ask whether there are messages, and never what is in them."""
        if self.kind(node) not in (_Kind.CLEAN, _Kind.MESSAGES):
            raise _Opaque

    def _clean(self, *parts: nodes.Node | None) -> _Kind:
        if any(part is not None and self.kind(part) is not _Kind.CLEAN for part in parts):
            raise _Opaque
        return _Kind.CLEAN

    def _text(self, node: nodes.Node) -> _Kind:
        kind = self.kind(node)
        if kind is _Kind.MESSAGES:
            raise _Opaque
        return kind

    def kind(self, node: nodes.Node) -> _Kind:
        rule = _RULES.get(type(node))
        if rule is None:
            raise _Opaque
        return rule(self, node)

    def name(self, node: nodes.Name) -> _Kind:
        return self.names.get(node.name, _Kind.CLEAN)

    def part(self, node: nodes.Getattr | nodes.Getitem) -> _Kind:
        """`x.name` and `x[name]`."""
        argument = nodes.Const(node.attr) if isinstance(node, nodes.Getattr) else node.arg
        whole = self.kind(node.node)
        name = argument.value if isinstance(argument, nodes.Const) else None
        if name in ("previtem", "nextitem"):  # of a loop: messages by another way
            raise _Opaque
        if whole is _Kind.MESSAGES:
            if isinstance(name, str):
                return _Kind.CONTENT if name == "content" else _Kind.CLEAN
            if not _is_index(argument):  # it might be "content"
                raise _Opaque
            return _Kind.MESSAGES
        return self._clean(node.node, argument)

    def filter(self, node: nodes.Filter) -> _Kind:
        if node.node is None:
            raise _Opaque
        plain = not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
        kind = self.kind(node.node)
        if kind is _Kind.CONTENT and node.name == "trim" and plain:
            return kind
        if kind is _Kind.MESSAGES and node.name in ("length", "count") and plain:
            return _Kind.CLEAN
        if node.name == "random" or node.dyn_args or node.dyn_kwargs:
            raise _Opaque
        return self._clean(node.node, *node.args, *(pair.value for pair in node.kwargs))

    def test(self, node: nodes.Test) -> _Kind:
        """What type a value has follows from the roles; contents are always texts."""
        kind = self.kind(node.node)
        if kind is not _Kind.CLEAN and node.name not in _TYPE_TESTS:
            raise _Opaque
        return self._clean(*node.args)

    def call(self, node: nodes.Call) -> _Kind:
        known = isinstance(node.node, nodes.Name) and node.node.name in _FUNCTIONS
        if not known or node.dyn_args or node.dyn_kwargs:  # a clock, for one, is a function too
            raise _Opaque
        return self._clean(*node.args, *(pair.value for pair in node.kwargs))

    def joined(self, node: nodes.Add | nodes.Concat) -> _Kind:
        parts = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
        kinds = {self._text(part) for part in parts}
        return _Kind.CLEAN if kinds == {_Kind.CLEAN} else _Kind.TEXT

    def choice(self, node: nodes.CondExpr) -> _Kind:
        self._truth(node.test)
        other = _Kind.CLEAN if node.expr2 is None else self.kind(node.expr2)
        return _either(self.kind(node.expr1), other)

    def negation(self, node: nodes.Not) -> _Kind:
        self._truth(node.node)
        return _Kind.CLEAN

    def compound(self, node: nodes.Node) -> _Kind:
        return self._clean(*node.iter_child_nodes())


def _is_index(node: nodes.Node | None) -> bool:
    """Whether an expression is a whole number or a slice: counts, and positions of a loop."""
    if isinstance(node, nodes.Const):
        return isinstance(node.value, int)
    if isinstance(node, nodes.Slice):
        return all(part is None or _is_index(part) for part in (node.start, node.stop, node.step))
    if isinstance(node, nodes.Getattr):
        return isinstance(node.node, nodes.Name) and node.node.name == "loop"
    if isinstance(node, nodes.Filter):
        return node.name in ("length", "count")
    return isinstance(node, nodes.Add | nodes.Sub | nodes.Neg) and all(map(_is_index, node.iter_child_nodes()))


def _either(first: _Kind, second: _Kind) -> _Kind:
    """Of a value that is one or the other."""
    if first is second:
        return first
    if _Kind.MESSAGES in (first, second):
        raise _Opaque
    return _Kind.TEXT


_TYPE_TESTS = frozenset("defined undefined none string mapping iterable sequence number boolean".split())
_FUNCTIONS = frozenset({"raise_exception", "namespace", "range"})
_RULES: dict[type[nodes.Node], Callable[..., _Kind]] = {
    nodes.Const: lambda proof, node: _Kind.CLEAN,
    nodes.TemplateData: lambda proof, node: _Kind.CLEAN,
    nodes.Name: _Proof.name,
    nodes.Getattr: _Proof.part,
    nodes.Getitem: _Proof.part,
    nodes.Filter: _Proof.filter,
    nodes.Test: _Proof.test,
    nodes.Call: _Proof.call,
    nodes.Add: _Proof.joined,
    nodes.Concat: _Proof.joined,
    nodes.CondExpr: _Proof.choice,
    nodes.Not: _Proof.negation,
    **dict.fromkeys((nodes.And, nodes.Or, nodes.Compare, nodes.Operand), _Proof.compound),
    **dict.fromkeys((nodes.Slice, nodes.List, nodes.Tuple), _Proof.compound),
    **dict.fromkeys((nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg), _Proof.compound),
}
