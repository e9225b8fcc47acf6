"""Split mode: tests in one process, the program in another one, and only data between them.

The tests' process never sees the program. It holds the functions of the program as `Remote` objects. Values come back as
exact base types, so comparisons are the tests' own. An object of the program stays in its process. The tests get a `Remote`
for it, which equals nothing else; its attributes, items and calls are requests, whose results are again data or remote.

Whether a program is judged in split mode depends on its tests alone: a program cannot choose the weaker mode.
"""

import builtins
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from codekiln.evaluate.sandbox.messages import Channel, MessageError, packed
from codekiln.evaluate.sandbox.wire import WireError, decode, encode

MUTABLE = (list, dict, set, bytearray)


class UnsupportedError(BaseException):
    """Tests that need what the wire does not carry. No `except Exception` of a test catches it."""


class ProgramEnded(BaseException):
    """The process of the program has ended before the tests did."""


class ProgramError(Exception):
    """An exception of the program whose class is not one of Python's."""


# The side of the program. Nothing here is trusted by the other side.


def serve(channel: Channel, code: str) -> None:
    """Runs the program, then answers requests until the other end is closed."""
    namespace: dict[str, Any] = {}
    exec(compile(code, "<program>", "exec", dont_inherit=True), namespace)  # noqa: S102
    channel.send("ready")
    objects: list[object] = []

    def keep(value: object) -> object:
        objects.append(value)
        return {"o": [len(objects) - 1, type(value).__name__]}

    def resolve(data: Any) -> object:
        return objects[data["o"][0]]

    while True:
        try:
            request = channel.receive()
        except EOFError:
            return
        reply = answer(request, namespace, keep, resolve)
        try:
            channel.send(reply)
        except MessageError as error:
            channel.send({"raise": ["ValueError", [str(error)]]})


def answer(
    request: dict[str, Any],
    namespace: dict[str, Any],
    keep: Callable[[object], object],
    resolve: Callable[[Any], object],
) -> dict[str, Any]:
    """The reply to one request: a value or an exception, and the arguments if the call changed them."""
    try:
        arguments = [decode(data, resolve) for data in request["arguments"]]
        keywords = {name: decode(data, resolve) for name, data in request.get("keywords", {}).items()}
        named = request.get("name")
        if named is None:
            target: Any = resolve(request["object"])
        elif named in namespace:
            target = namespace[named]
        else:
            raise NameError(f"name {named!r} is not defined")
        reply = {"value": encode(OPERATIONS[request["operation"]](target, *arguments, **keywords), keep)}
    except (SystemExit, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        values: list[object] = []
        try:
            values = [encode(value, refuse_object) for value in error.args]
        except Exception:
            values = [f"{error}"]
        return {"raise": [type(error).__name__, values]}
    if any(isinstance(value, (*MUTABLE, tuple)) for value in arguments):
        try:
            after = [encode(value, keep) for value in arguments]
        except WireError:
            return reply
        if after != request["arguments"]:
            reply["arguments"] = after
    return reply


def refuse_object(value: object) -> NoReturn:
    raise WireError(f"a value of type {type(value).__name__} is no data")


OPERATIONS: dict[str, Callable[..., object]] = {
    "call": lambda target, *arguments, **keywords: target(*arguments, **keywords),
    "get": lambda target: target,
    "attribute": getattr,
    "item": lambda target, key: target[key],
    "len": len,
    "bool": bool,
    "list": list,
}

# The side of the tests.


class Tests:
    """Runs tests against a program at the other end of the channel."""

    __test__ = False  # not a class of tests for pytest

    def __init__(self, channel: Channel, functions: list[str]) -> None:
        self.channel = channel
        self.functions = functions
        self.unsupported = ""
        self.has_ended = False

    def run(self, code: str, helpers: str) -> None:
        """Runs the tests after their helpers, which may define functions of the program: those are replaced.

        Raises what the tests raise, UnsupportedError and ProgramEnded.
        """
        compiled = compile(code, "<tests>", "exec", dont_inherit=True)
        self.receive()  # the program has run
        namespace: dict[str, Any] = {"__builtins__": Names(self)}
        if helpers:
            exec(compile(helpers, "<helpers>", "exec", dont_inherit=True), namespace)  # noqa: S102
        namespace |= {name: Remote(self, {"name": name}) for name in self.functions}
        exec(compiled, namespace)  # noqa: S102
        # A test may have caught these.
        if self.unsupported:
            raise UnsupportedError(self.unsupported)
        if self.has_ended:
            raise ProgramEnded

    def request(self, target: dict[str, Any], operation: str, arguments: tuple[Any, ...], **more: Any) -> Any:
        """Sends a request, mirrors changes of its arguments, and returns its value or raises its exception."""
        sent = target | {"operation": operation, "arguments": [self.encode(value) for value in arguments]} | more
        try:
            data = packed(sent)
        except MessageError as error:
            self.refuse(str(error))
        try:
            self.channel.socket.sendall(data)
        except OSError:
            self.has_ended = True
            raise ProgramEnded from None
        reply = self.receive()
        try:
            if "raise" in reply:
                raise_like(*reply["raise"])
            for value, after in zip(arguments, reply.get("arguments", ()), strict=False):
                mirror(value, self.decode(after))
            return self.decode(reply["value"])
        except (WireError, KeyError, TypeError, AttributeError) as error:
            if "raise" in reply:
                raise
            raise ProgramError(f"no value came back: {error}") from None

    def receive(self) -> Any:
        try:
            return self.channel.receive()
        except (EOFError, OSError, MessageError):
            self.has_ended = True
            raise ProgramEnded from None

    def encode(self, value: object) -> object:
        try:
            return encode(value, self.encode_remote, strict=True)
        except WireError as error:
            self.refuse(str(error))

    def encode_remote(self, value: object) -> object:
        if isinstance(value, Remote) and "object" in value._target:
            return value._target["object"]
        if isinstance(value, Remote):
            # A function that is passed to a function is looked up first.
            found = self.request(value._target, "get", ())
            if isinstance(found, Remote):
                return found._target["object"]
        self.refuse(f"the tests pass a value of type {type(value).__name__}")

    def decode(self, data: object) -> Any:
        return decode(data, lambda encoded: Remote(self, {"object": encoded}))

    def refuse(self, reason: str) -> NoReturn:
        self.unsupported = reason
        raise UnsupportedError(reason)


class Names(dict[str, Any]):
    """Python's builtins, and whatever else the tests name: names of the program."""

    def __init__(self, tests: Tests) -> None:
        super().__init__(vars(builtins))
        self.tests = tests

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        try:
            return self.tests.request({"name": name}, "get", ())
        except NameError:
            raise KeyError(name) from None


class Remote:
    """A function or an object of the program. Compares by identity, whatever the program wants."""

    def __init__(self, tests: Tests, target: dict[str, Any]) -> None:
        self._tests = tests
        self._target = target

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        encoded = {name: self._tests.encode(value) for name, value in keywords.items()}
        return self._tests.request(self._target, "call", arguments, keywords=encoded)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._tests.request(self._target, "attribute", (name,))

    def __getitem__(self, key: Any) -> Any:
        return self._tests.request(self._target, "item", (key,))

    def __len__(self) -> Any:
        return self._tests.request(self._target, "len", ())

    def __bool__(self) -> Any:
        return self._tests.request(self._target, "bool", ())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tests.request(self._target, "list", ()))

    def __instancecheck__(self, value: object) -> NoReturn:
        self._tests.refuse("the tests check for a class of the program")


def raise_like(name: str, values: list[object]) -> NoReturn:
    """Raises the exception of Python with that name, or ProgramError."""
    kind = vars(builtins).get(name)
    values = decode(values, refuse_object)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(*values)
        except TypeError:  # some need certain arguments
            error = ProgramError(name, *values)
        raise error
    raise ProgramError(name, *values)


def mirror(value: Any, after: Any) -> None:
    """Changes an argument as the program changed its copy. Containers in it stay the same objects where they can."""
    if type(value) is not type(after):
        return
    if isinstance(value, list | tuple):
        for k, (old, new) in enumerate(zip(value, after, strict=False)):
            if isinstance(old, (*MUTABLE, tuple)) and type(old) is type(new):
                mirror(old, new)
                if isinstance(after, list):
                    after[k] = old
        if isinstance(value, list):
            value[:] = after
    elif isinstance(value, dict):
        for key, old in value.items():
            if isinstance(old, (*MUTABLE, tuple)) and type(old) is type(after.get(key)):
                mirror(old, after[key])
                after[key] = old
        value.clear()
        value.update(after)
    elif isinstance(value, set):
        value.clear()
        value.update(after)
    elif isinstance(value, bytearray):
        value[:] = after
