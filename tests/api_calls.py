"""Compares how our modules use a library with what the library has, by reading both, so nothing runs.

    api_calls({"a.py": source}, api, roots={"trt"}).complaints

Our objects of the library are followed from the module through attributes, calls, assignments, loops, arguments and
returns. An attribute that only the library has, on something that could not be followed, is a complaint too. Arguments
of a call with *args or **kwargs are not compared.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tests.nvidia_bindings import Member, Signature


@dataclass(frozen=True)
class Value:
    """What an expression may be: the module itself, or something of it."""

    path: str
    """its dotted name, or that of its class if it is an object; empty for the module"""
    is_object: bool = False
    is_list: bool = False


MODULE = Value("")
Values = frozenset[Value]
UNKNOWN: Values = frozenset()


@dataclass
class Calls:
    used: set[str] = field(default_factory=set)
    """dotted names, such as 'IExecutionContext.execute_async_v3'"""
    complaints: list[str] = field(default_factory=list)


def api_calls(
    sources: Mapping[str, str],
    api: Mapping[str, Member],
    roots: Collection[str],
    absent: Collection[str] = (),
    by_name: Collection[str] = (),
) -> Calls:
    """How the sources, text by file name, use the library; they may call each other.

    roots: names of variables and attributes that are the module. absent: members that the library need not have,
    because the code asks first which it has. by_name: our methods that call the function named by their first argument.
    """
    trees = {name: ast.parse(text) for name, text in sources.items()}
    reader = _Reader(trees, api, roots, absent, by_name)
    while reader.infer():
        pass
    return reader.check()


class _Reader:
    def __init__(
        self,
        trees: Mapping[str, ast.Module],
        api: Mapping[str, Member],
        roots: Collection[str],
        absent: Collection[str],
        by_name: Collection[str],
    ) -> None:
        self._trees, self._api, self._roots, self._absent, self._by_name = trees, api, roots, absent, by_name
        self._words = {name.rpartition(".")[2] for name in api if "_" in name.rpartition(".")[2]}
        """members whose names are long enough to be the library's alone"""
        self._known: defaultdict[tuple[ast.AST | str, str], Values] = defaultdict(frozenset)
        """by scope, or 'attribute' or 'return', and name"""
        self._functions: defaultdict[str, list[ast.FunctionDef]] = defaultdict(list)
        self._classes: dict[str, ast.ClassDef] = {}
        """ours, that derive from the library's"""
        self._scopes: dict[ast.AST, ast.AST] = {}
        """the innermost function, or module, around each node"""
        for tree in trees.values():
            self._place(tree, tree)

    def _place(self, node: ast.AST, scope: ast.AST) -> None:
        self._scopes[node] = scope
        if isinstance(node, ast.FunctionDef):
            self._functions[node.name].append(node)
        for child in ast.iter_child_nodes(node):
            self._place(child, node if isinstance(node, ast.FunctionDef | ast.Lambda) else scope)

    # ---- inferring

    def infer(self) -> bool:
        """One round; whether it found anything new."""
        before = sum(map(len, self._known.values())) + len(self._classes)
        for node in self._nodes():
            match node:
                case ast.Assign(targets=targets, value=value):
                    for target in targets:
                        self._bind(target, self._values(value))
                case (
                    ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value)
                ):
                    self._bind(target, self._values(value))
                case ast.For(target=target, iter=several) | ast.comprehension(target=target, iter=several):
                    self._bind(target, self._elements(several))
                case ast.Return(value=ast.expr() as value):
                    function = self._scopes[node]
                    if isinstance(function, ast.FunctionDef):
                        self._known["return", function.name] |= self._values(value)
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in self._functions:
                    for function in self._functions[name]:
                        self._pass(node, function)
                case ast.ClassDef(name=name, bases=bases) if any(self._values(base) for base in bases):
                    self._classes[name] = node
        return sum(map(len, self._known.values())) + len(self._classes) > before

    def _nodes(self) -> Iterator[ast.AST]:
        for tree in self._trees.values():
            yield from ast.walk(tree)

    def _bind(self, target: ast.expr, values: Values) -> None:
        if isinstance(target, ast.Name):
            self._known[self._scopes[target], target.id] |= values
        elif isinstance(target, ast.Attribute) and not self._values(target.value):
            self._known["attribute", target.attr] |= values

    def _pass(self, call: ast.Call, function: ast.FunctionDef) -> None:
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args) if one.arg != "self"]
        passed = [*zip(names, call.args), *((one.arg, one.value) for one in call.keywords)]
        for name, value in passed:
            if name is not None:
                self._known[function, name] |= self._values(value)

    def _values(self, node: ast.expr) -> Values:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in self._roots:
                return frozenset({MODULE})
            case ast.Name(id="self"):
                around = [one for one in self._classes.values() if node in ast.walk(one)]
                return frozenset().union(*map(self._made, around))
            case ast.Name(id=name):
                scope = self._scopes[node]
                while not self._known[scope, name] and not isinstance(scope, ast.Module):
                    scope = self._scopes[scope]
                return self._known[scope, name]
            case ast.Attribute(value=owner, attr=name):
                owners = self._values(owner)
                found = [self._got(one, name) for one in owners]
                return frozenset().union(*found) if owners else self._known["attribute", name]
            case ast.Subscript(value=several):
                return self._elements(several)
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
                return frozenset(replace(one, is_list=True) for one in self._values(element))
            case ast.IfExp(body=one, orelse=other):
                return self._values(one) | self._values(other)
            case ast.BoolOp(values=values):
                return frozenset().union(*map(self._values, values))
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name)), *_]):
                return frozenset().union(*(self._got(one, name) for one in self._values(owner)))
            case ast.Call(func=function):
                return self._returned(function)
        return UNKNOWN

    def _elements(self, several: ast.expr) -> Values:
        return frozenset(replace(one, is_list=False) for one in self._values(several) if one.is_list)

    def _returned(self, function: ast.expr) -> Values:
        if values := self._values(function):
            return frozenset().union(*map(self._result, values))
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        return self._made(self._classes[name]) if name in self._classes else self._known["return", name]

    def _made(self, ours: ast.ClassDef) -> Values:
        return frozenset(replace(one, is_object=True) for base in ours.bases for one in self._values(base))

    def _got(self, value: Value, name: str) -> Values:
        """An attribute of it."""
        path = self._path(value, name)
        member = self._api.get(path)
        if member is None or value.is_list:
            return UNKNOWN
        return self._typed(member.type) if member.kind in ("property", "value") else frozenset({Value(path)})

    def _path(self, value: Value, name: str) -> str:
        """Of the member, which a base class may have."""
        bases = self._api[value.path].bases if value.path else ()
        paths = [f"{owner}.{name}".lstrip(".") for owner in (value.path, *bases)]
        return next((path for path in paths if path in self._api), paths[0])

    def _result(self, value: Value) -> Values:
        """Of a call."""
        member = self._api.get(value.path)
        if member is None or value.is_object:
            return UNKNOWN
        if member.kind == "class":
            return frozenset({replace(value, is_object=True)})
        return frozenset().union(*(self._typed(one.returns) for one in member.signatures))

    def _typed(self, kind: str) -> Values:
        is_list = kind.startswith("list[")
        path = kind[5:-1] if is_list else kind
        if path not in self._api:
            path = path.removeprefix("I")  # C++ has an IParserError, Python a ParserError
        return frozenset({Value(path, True, is_list)}) if path in self._api else UNKNOWN

    # ---- checking

    def check(self) -> Calls:
        calls = Calls()
        for file, tree in self._trees.items():
            for node in ast.walk(tree):
                for said in self._checked(node, calls.used):
                    calls.complaints.append(f"{file}:{getattr(node, 'lineno', 0)}: {said}")
        return calls

    def _checked(self, node: ast.AST, used: set[str]) -> Iterator[str]:
        match node:
            case ast.Attribute(value=owner, attr=name) if name not in self._roots:
                yield from self._attribute(owner, name, isinstance(node.ctx, ast.Store), used)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
                yield from self._attribute(owner, name, False, used)
            case ast.Call(func=ast.Attribute(attr=ours), args=[ast.Constant(value=str(name)), *args]) if (
                ours in self._by_name
            ):
                if name in self._api:
                    used.add(name)
                    yield from self._call(name, args, node.keywords)
                else:
                    yield f"there is no {name}"
            case ast.Call(func=function):
                for value in self._values(function):
                    if not value.is_object and value.path:
                        yield from self._call(value.path, node.args, node.keywords)
            case ast.ClassDef(name=name) if name in self._classes:
                yield from self._overrides(node)

    def _attribute(self, owner: ast.expr, name: str, stored: bool, used: set[str]) -> Iterator[str]:
        values = self._values(owner)
        if not values and name in self._words - self._functions.keys():
            said = ast.unparse(owner)
            yield f"{said}.{name} looks like the library's, but {said} could not be followed"
        for value in values:
            path = self._path(value, name)
            if value.is_list:
                continue
            if path in self._api:
                used.add(path)
                if stored and not self._api[path].settable:
                    yield f"{path} cannot be set"
            elif path not in self._absent and not any(name in _defined(one) for one in self._classes.values()):
                yield f"there is no {path}"

    def _call(self, path: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[str]:
        signatures = self._api[path].signatures
        if any(isinstance(one, ast.Starred) for one in args) or any(one.arg is None for one in keywords):
            return
        reasons = [self._misfit(signature, args, keywords) for signature in signatures]
        if reasons and all(reasons):
            given = ", ".join(map(ast.unparse, (*args, *keywords)))
            yield f"{path}({given}) does not fit: {'; '.join(filter(None, reasons))}"

    def _misfit(self, signature: Signature, args: list[ast.expr], keywords: list[ast.keyword]) -> str:
        """Why the call does not fit that signature; empty if it does."""
        by_place = [one for one in signature.parameters if not one.keyword_only]
        if len(args) > len(by_place) and not signature.any_more:
            return f"takes {len(by_place)} arguments, got {len(args)}"
        given = dict(zip((one.name or str(i) for i, one in enumerate(by_place)), args))
        for keyword in keywords:
            if keyword.arg in given:
                return f"{keyword.arg} is given twice"
            if keyword.arg not in {one.name for one in signature.parameters} and not signature.any_more:
                return f"has no parameter {keyword.arg}"
            given[str(keyword.arg)] = keyword.value
        for i, parameter in enumerate(signature.parameters):
            value = given.get(parameter.name or str(i))
            if value is None:
                if parameter.needed:
                    return f"needs {parameter.name or f'argument {i + 1}'}"
            elif parameter.type in self._api:
                kinds = {kind for one in self._values(value) for kind in self._kinds(one)}
                if kinds and parameter.type not in kinds:
                    return f"{parameter.name} is {parameter.type}, got {ast.unparse(value)}"
        return ""

    def _kinds(self, value: Value) -> tuple[str, ...]:
        return (value.path, *self._api[value.path].bases) if value.path else ("module",)

    def _overrides(self, ours: ast.ClassDef) -> Iterator[str]:
        """A class of ours must have every method of the library's base, which calls them."""
        methods = {node.name: node for node in ours.body if isinstance(node, ast.FunctionDef)}
        for base in self._made(ours):
            for path, member in self._api.items():
                owner, _, name = path.rpartition(".")
                if owner != base.path or member.kind != "function":
                    continue
                if name not in methods:
                    yield f"{ours.name} lacks {path}"
                    continue
                names = [one.arg for one in methods[name].args.args][1:]
                if not any(len(names) == len(one.parameters) for one in member.signatures):
                    yield f"{ours.name}.{name} takes {names}, but {path} is called with others"


def _defined(ours: ast.ClassDef) -> set[str]:
    """Its methods and attributes."""
    stored = [node for node in ast.walk(ours) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    methods = [node for node in ast.walk(ours) if isinstance(node, ast.FunctionDef)]
    return {*(node.attr for node in stored), *(node.name for node in methods)}
