"""The grammar of expressions and of `$orderby`, `$select`, `$expand` (OGC 18-088 §9.3; OData 4.0 part 2 §5.1).

Precedence from the tightest: not, mul div mod, add sub, comparisons, and, or.
"""

from api.sensorthings.errors import Fault
from api.sensorthings.lexer import Token, literal, tokens
from api.sensorthings.syntax import (
    Binary,
    Call,
    Expand,
    Expression,
    In,
    Lambda,
    Literal,
    LiteralKind,
    Not,
    OrderKey,
    Path,
    Query,
)

DEEPEST = 60  # levels of parentheses, functions and expansions, and steps of a path
MOST_NODES = 2_000
MOST_EXPANSIONS = 60
MOST_KEYS = 30  # of an order

COMPARISONS = frozenset({"eq", "ne", "gt", "ge", "lt", "le"})
MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
TEMPORAL = frozenset({"before", "after", "meets", "during", "overlaps", "starts", "finishes"})
_SUMS = frozenset({"add", "sub"})
_PRODUCTS = frozenset({"mul", "div", "divby", "mod"})
_UNSUPPORTED_OPERATORS = frozenset({"has"})
LARGEST_INT = 2**31 - 1  # of $top and $skip
_KNOWN = frozenset({"$filter", "$orderby", "$select", "$expand", "$top", "$skip", "$count"})
ODATA_OPTIONS = frozenset(
    {"$search", "$format", "$apply", "$compute", "$levels", "$deltatoken", "$id", "$index", "$schemaversion"}
)


class Parser:
    """Reads one option's text. Raises `Fault`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._next = 0
        self._depth = 0
        self._nodes = 0
        self._expansions = 0

    def end(self) -> None:
        """Make sure that everything was read."""
        if self._peek().kind != "end":
            raise Fault(self._peek().at, "an operator or the end was expected")

    # Expressions ------------------------------------------------------------------------------------------------

    def expression(self) -> Expression:
        """Read an expression."""
        self._enter()
        left = self._conjunction()
        while token := self._word("or"):
            left = Binary(token.at, "or", left, self._conjunction())
        self._depth -= 1
        return left

    def _conjunction(self) -> Expression:
        left = self._comparison()
        while token := self._word("and"):
            left = Binary(token.at, "and", left, self._comparison())
        return left

    def _comparison(self) -> Expression:
        left = self._sum()
        while token := self._word(*COMPARISONS, *TEMPORAL, "in", *_UNSUPPORTED_OPERATORS):
            if token.text in _UNSUPPORTED_OPERATORS:
                raise Fault(token.at, f"the operator {token.text} is not supported", unsupported=True)
            if token.text == "in":
                left = self._choices(token, left)
            else:
                left = Binary(token.at, token.text, left, self._sum())
        return left

    def _choices(self, token: Token, value: Expression) -> Expression:
        if not self._mark("("):
            return In(token.at, value, (self._sum(),), listed=False)
        choices = [self.expression()]
        while self._mark(","):
            choices.append(self.expression())
        self._expect(")")
        return In(token.at, value, tuple(choices), listed=True)

    def _sum(self) -> Expression:
        left = self._product()
        while token := self._word(*_SUMS):
            left = Binary(token.at, token.text, left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._unary()
        while token := self._word(*_PRODUCTS):
            left = Binary(token.at, token.text.replace("divby", "div"), left, self._unary())
        return left

    def _unary(self) -> Expression:
        if token := self._word("not"):
            self._enter()
            operand = self._unary()
            self._depth -= 1
            return Not(token.at, operand)
        return self._primary()

    def _primary(self) -> Expression:
        self._count_node()
        token = self._peek()
        if self._mark("("):
            inside = self.expression()
            self._expect(")")
            return inside
        found = literal(token)
        if found is not None and not (token.kind == "name" and self._peek(1).text in {"/", "("}):
            self._next += 1
            return found
        if token.kind != "name":
            raise Fault(token.at, "a value, a property or a function was expected")
        if self._peek(1).text == "(" and self._peek(1).kind == "mark":
            return self._call()
        return self._path_or_lambda()

    def _call(self) -> Call:
        token = self._take()
        self._expect("(")
        arguments: list[Expression] = []
        if not self._mark(")"):
            arguments.append(self.expression())
            while self._mark(","):
                arguments.append(self.expression())
            self._expect(")")
        return Call(token.at, token.text, tuple(arguments))

    def _path_or_lambda(self) -> Expression:
        at = self._peek().at
        steps: list[str | int] = [self._take().text]
        self._indexes(steps)
        while self._mark("/"):
            token = self._take()
            if token.kind != "name":
                raise Fault(token.at, "the name of a property or a relation was expected")
            if token.text in {"any", "all"} and self._peek().text == "(":
                return self._lambda(token, Path(at, tuple(steps)))
            steps.append(token.text)
            self._indexes(steps)
            if len(steps) > DEEPEST:
                raise Fault(token.at, f"a path of more than {DEEPEST} steps")
        return Path(at, tuple(steps))

    def _lambda(self, token: Token, path: Path) -> Lambda:
        self._expect("(")
        every = token.text == "all"
        if not every and self._mark(")"):
            return Lambda(token.at, path, every, None, None)
        variable = self._take()
        if variable.kind != "name":
            raise Fault(variable.at, "the name of a variable was expected")
        self._expect(":")
        predicate = self.expression()
        self._expect(")")
        return Lambda(token.at, path, every, variable.text, predicate)

    def _indexes(self, steps: list[str | int]) -> None:
        while self._mark("["):
            steps.append(self.integer())
            self._expect("]")

    # The other options ------------------------------------------------------------------------------------------

    def order_keys(self) -> tuple[OrderKey, ...]:
        """Read the keys of `$orderby`."""
        keys = []
        while True:
            expression = self.expression()
            direction = self._word("asc", "desc", "ASC", "DESC")  # as a common client writes it
            keys.append(OrderKey(expression, direction is not None and direction.text.lower() == "desc"))
            if len(keys) > MOST_KEYS:
                raise Fault(self._peek().at, f"more than {MOST_KEYS} keys")
            if not self._mark(","):
                return tuple(keys)

    def selection(self) -> tuple[Path, ...]:
        """Read the paths of `$select`."""
        paths = []
        while True:
            token = self._peek()
            if self._mark("*"):
                paths.append(Path(token.at, ("*",)))
            else:
                found = self._path_or_lambda() if token.kind == "name" else None
                if not isinstance(found, Path):
                    raise Fault(token.at, "the name of a property was expected")
                paths.append(found)
            if not self._mark(","):
                return tuple(paths)

    def expansion(self) -> tuple[Expand, ...]:
        """Read the relations of `$expand`."""
        self._enter()
        merged: dict[str, Expand] = {}
        while True:
            item = self._expand_item()
            earlier = merged.get(item.relation)
            merged[item.relation] = merge(earlier, item) if earlier else item
            if not self._mark(","):
                self._depth -= 1
                return tuple(merged.values())

    def _expand_item(self) -> Expand:
        self._expansions += 1
        if self._expansions > MOST_EXPANSIONS:
            raise Fault(self._peek().at, f"more than {MOST_EXPANSIONS} expansions")
        token = self._take()
        if token.text == "*" or token.text.startswith("$"):
            raise Fault(token.at, f"{token.text} in $expand is not supported", unsupported=True)
        if token.kind != "name":
            raise Fault(token.at, "the name of a relation was expected")
        if self._mark("/"):
            self._enter()
            inner = self._expand_item()
            self._depth -= 1
            return Expand(token.at, token.text, Query(expand=(inner,)))
        query = Query()
        if self._mark("("):
            query = self._nested_options()
            self._expect(")")
        return Expand(token.at, token.text, query)

    def _nested_options(self) -> Query:
        options = Options()
        while True:
            token = self._take()
            if token.kind != "name" or not token.text.startswith("$"):
                raise Fault(token.at, "an option such as $filter was expected")
            token = token._replace(text=token.text.lower())
            self._expect("=")
            start = self._peek().at
            options.read(token, self)
            options.texts[token.text] = self._text[start : self._peek().at].strip()
            if not self._mark(";"):
                return options.query()
            if self._peek().text == ")":  # a semicolon before the end does no harm
                return options.query()

    def integer(self) -> int:
        """Read a number for `$top`, `$skip` or an index."""
        token = self._take()
        if token.kind != "number" or not token.text.isdecimal():
            raise Fault(token.at, "a whole number of at least 0 was expected")
        number = int(token.text) if len(token.text) <= 10 else LARGEST_INT + 1
        if number > LARGEST_INT:
            raise Fault(token.at, f"a number of at most {LARGEST_INT} was expected")
        return number

    def true_or_false(self) -> bool:
        """Read `true` or `false`."""
        token = self._take()
        if token.text not in {"true", "false"}:
            raise Fault(token.at, "true or false was expected")
        return token.text == "true"

    # Tokens -----------------------------------------------------------------------------------------------------

    def _peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._next + ahead, len(self._tokens) - 1)]

    def _take(self) -> Token:
        token = self._peek()
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _word(self, *words: str) -> Token | None:
        token = self._peek()
        if token.kind == "name" and token.text in words:
            return self._take()
        return None

    def _mark(self, text: str) -> Token | None:
        token = self._peek()
        return self._take() if token.kind == "mark" and token.text == text else None

    def _expect(self, text: str) -> None:
        if not self._mark(text):
            raise Fault(self._peek().at, f"{text} was expected")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Fault(self._peek().at, f"more than {DEEPEST} levels inside each other")

    def _count_node(self) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise Fault(self._peek().at, f"more than {MOST_NODES} values and properties")


class Options:
    """The options of one collection while they are read; each may come once."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._filter: Expression | None = None
        self._orderby: tuple[OrderKey, ...] = ()
        self._select: tuple[Path, ...] = ()
        self._expand: tuple[Expand, ...] = ()
        self._top: int | None = None
        self._skip = 0
        self._count = False

    def read(self, name: Token, parser: Parser) -> None:
        """Read the value of the option `name` where the parser stands."""
        if name.text in ODATA_OPTIONS:
            raise Fault(name.at, f"{name.text} is not supported", unsupported=True)
        if name.text not in _KNOWN:
            raise Fault(name.at, f"there is no option {name.text}")
        if name.text in self.texts:
            raise Fault(name.at, f"{name.text} is given twice")
        match name.text:
            case "$filter":
                self._filter = parser.expression()
            case "$orderby":
                self._orderby = parser.order_keys()
            case "$select":
                self._select = parser.selection()
            case "$expand":
                self._expand = parser.expansion()
            case "$top":
                self._top = parser.integer()
            case "$skip":
                self._skip = parser.integer()
            case _:
                self._count = parser.true_or_false()

    def query(self, skiptoken: str | None = None) -> Query:
        """What was read."""
        return Query(
            skiptoken=skiptoken,
            filter=self._filter,
            orderby=self._orderby,
            select=self._select,
            expand=self._expand,
            top=self._top,
            skip=self._skip,
            count=self._count,
            texts=self.texts,
        )


def merge(one: Expand, other: Expand) -> Expand:
    """`A/B,A/C` is `A($expand=B,C)`; anything else that names a relation twice contradicts itself."""
    first, second = one.query, other.query
    if second.texts.keys() - {"$expand"}:
        first, second = second, first
    if second.texts.keys() - {"$expand"}:
        raise Fault(other.at, f"{other.relation} is expanded twice with different options")
    inner = {e.relation: e for e in first.expand}
    for e in second.expand:
        inner[e.relation] = merge(inner[e.relation], e) if e.relation in inner else e
    query = Query(
        filter=first.filter,
        orderby=first.orderby,
        select=first.select,
        expand=tuple(inner.values()),
        top=first.top,
        skip=first.skip,
        count=first.count,
        texts=first.texts,
    )
    return Expand(one.at, one.relation, query)


def is_null(expression: Expression) -> bool:
    """Whether an expression is the literal null."""
    return isinstance(expression, Literal) and expression.kind is LiteralKind.NULL
